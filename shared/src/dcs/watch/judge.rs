//! Whether what the store shows is believed.

use std::sync::Arc;

use super::fold::change;
use super::{Asked, Doubted, Follower, Taken, View};
use crate::cluster::Topology;
use crate::cluster::store::Told;
use crate::cluster::topology::{Fact, FactKey};
use crate::dcs::belief::Verdict;
use crate::dcs::{DcsError, Entry, Listing};

impl Follower {
    /// Makes the view from a listing, if it is believed.
    pub(super) fn take_listing(&self, asked: &Asked, listing: Listing) -> Result<Taken, DcsError> {
        let old = self.view();
        let (shown, _, _) = self.build(&Topology::default(), &listing);
        let belief = &asked.belief;
        match belief.weigh(listing.header, &shown, &asked.known) {
            Verdict::Believed if listing.header.revision < old.topology.revision => {
                Ok(Taken::Overtaken)
            }
            Verdict::Believed => Ok(match self.install(asked.at, &listing) {
                true => Taken::Changed,
                false => Taken::Unchanged,
            }),
            Verdict::Accepted => {
                let (known, generation) = (old.belief.generation, shown.generation);
                tracing::warn!(known, generation, "the DCS was accepted anew");
                self.dcs.accept(&listing.header);
                self.views.send_modify(|view| {
                    let mut belief = old.belief.clone();
                    belief.accept(listing.header, &shown);
                    *view = Arc::new(View {
                        belief,
                        ..View::default()
                    });
                });
                self.install(asked.at, &listing);
                Ok(Taken::Changed)
            }
            Verdict::WentBack(why) => {
                self.begin_doubt(&why, None);
                self.show_doubted(Doubted {
                    listing,
                    topology: shown,
                });
                Err(DcsError::WentBack(why.to_string()))
            }
        }
    }

    /// The client refused to believe the store: look whether somebody vouches for it.
    pub(super) async fn look_anew(&self, why: &str) -> Result<(), DcsError> {
        self.begin_doubt(why, None);
        let asked = self.asked();
        let listing = self.dcs.read_anew(self.keys.prefix()).await?;
        self.take_listing(&asked, listing).map(|_| ())
    }

    /// Nothing more is believed. What others say who know more is kept.
    pub(super) fn begin_doubt(&self, why: &str, told: Option<Told>) {
        let is_new = self.views.borrow().went_back.is_none();
        if self.guards && (is_new || told.is_some()) {
            // Once: whoever makes the keys anew accepts the store before this view shows it.
            self.dcs.doubt(why);
        }
        self.views.send_if_modified(|view| {
            if is_new || told.is_some() {
                let view = Arc::make_mut(view);
                let belief = &mut view.belief;
                belief.doubt.get_or_insert_with(|| why.into());
                view.went_back.clone_from(&belief.doubt);
                if let Some(told) = told {
                    belief.hear(told);
                }
            }
            is_new
        });
    }

    fn show_doubted(&self, doubted: Doubted) {
        self.views.send_if_modified(|view| {
            let shown = view.doubted.as_ref();
            let is_new = shown.is_none_or(|old| old.listing.entries != doubted.listing.entries);
            Arc::make_mut(view).doubted = Some(Arc::new(doubted));
            is_new
        });
    }

    /// Whether these changes take the cluster's identity away.
    pub(super) fn loses_identity(&self, changes: &[(String, Option<Entry>)]) -> bool {
        let Some(system) = self.views.borrow().belief.system else {
            return false;
        };
        let path = self.keys.path(&FactKey::Initialize);
        let of_it = changes.iter().filter(|(key, _)| *key == path);
        of_it.into_iter().any(|(_, entry)| {
            let at = entry.as_ref().map_or(0, |entry| entry.mod_revision);
            let change = change(FactKey::Initialize, entry.as_ref(), at);
            change.fact != Some(Fact::Initialize(Some(system)))
        })
    }
}
