//! `dsn`: how to connect to a member.

use trunkline_shared::cluster::{Member, MemberName, Topology};

use super::arguments::{Dsn, Role};
use super::members::has_role;
use super::{CtlError, Session};

/// `trunkline dsn`
pub(super) async fn dsn(session: &Session, asked: &Dsn) -> Result<(), CtlError> {
    let (_follow, view) = session.known().await?;
    let member = any_member(&view.topology, asked.role, asked.member.as_deref())?;
    let (host, port) = host_and_port(member);
    session.terminal.line(&format!("host={host} port={port}"))
}

/// The first member of a role, or the one of a name; the leader where neither is asked for.
///
/// # Errors
/// If both are, or if there is none.
pub(super) fn any_member<'t>(
    topology: &'t Topology,
    role: Option<Role>,
    name: Option<&str>,
) -> Result<&'t Member, CtlError> {
    let found = match (role, name) {
        (Some(_), Some(_)) => {
            let why = "--role and --member are mutually exclusive options";
            return Err(CtlError::Usage(why.to_owned()));
        }
        (None, Some(name)) => topology.members.get(&MemberName::new(name)),
        (role, None) => {
            let role = role.unwrap_or(Role::Leader);
            let mut members = topology.members.values();
            members.find(|member| has_role(topology, &member.name, role))
        }
    };
    found.map(AsRef::as_ref).ok_or_else(|| {
        let names: Vec<&str> = topology.members.keys().map(MemberName::as_str).collect();
        CtlError::Failed(format!(
            "Can not find a suitable member: {}; the members are {}",
            match name {
                Some(name) => format!("{name} is not registered"),
                None => format!("no member of role {}", role.unwrap_or(Role::Leader).word()),
            },
            names.join(", ")
        ))
    })
}

/// An address as libpq takes it: without the brackets of IPv6.
pub(super) fn host_and_port(member: &Member) -> (&str, &str) {
    let address = member.address.as_ref();
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "5432"));
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}
