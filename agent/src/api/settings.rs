//! The dynamic configuration: read, checked, and written by compare-and-swap.

use axum::response::Response;
use serde_json::Value;
use trunkline_shared::cluster::topology::FactKey;
use trunkline_shared::dcs::keys::Keys;
use trunkline_shared::dcs::records::{SettingsError, merge_patch, read_value};
use trunkline_shared::dcs::{Compare, Dcs, DcsError, Operation, Txn};

use super::{Api, json, with_status};

/// Why the configuration was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsChangeError {
    /// There is none: the cluster was not made yet, or the DCS lost its memory.
    #[error("there is no dynamic configuration yet: the cluster was not bootstrapped")]
    Absent,
    /// What stands in the DCS is no JSON.
    #[error("the dynamic configuration in the DCS is not JSON: {0}")]
    NotJson(String),
    /// The new one would not be usable.
    #[error("not written: {0}")]
    Unusable(String),
    /// Somebody else changed it at the same time. Read again.
    #[error(
        "not written: the configuration was changed by someone else at the same time; try again"
    )]
    Conflict,
    /// The DCS did not do it.
    #[error(transparent)]
    Dcs(#[from] DcsError),
}

/// The configuration with the revision it was read at.
pub async fn read(dcs: &dyn Dcs, keys: &Keys) -> Result<(Value, i64), SettingsChangeError> {
    let get = Txn {
        then: vec![Operation::Get(keys.path(&FactKey::Settings))],
        ..Txn::default()
    };
    let committed = dcs.commit(&get).await?;
    let entry = committed
        .entries
        .first()
        .ok_or(SettingsChangeError::Absent)?;
    let value = serde_json::from_slice(&entry.value)
        .map_err(|error| SettingsChangeError::NotJson(error.to_string()))?;
    Ok((value, entry.mod_revision))
}

/// Writes `value`: over the configuration and revision of `replaces` if that still stands there, else over whatever does.
/// What is not usable is refused, unless it stood there before: it is acted on as Patroni does, and must not keep anybody
/// from changing the rest.
pub async fn write(
    dcs: &dyn Dcs,
    keys: &Keys,
    value: &Value,
    replaces: Option<(&Value, i64)>,
) -> Result<(), SettingsChangeError> {
    let refused = |error: SettingsError| SettingsChangeError::Unusable(error.to_string());
    let before = replaces.and_then(|(old, _)| read_value(old).ok());
    let before = before.map(|read| read.unusable).unwrap_or_default();
    let mut unusable = read_value(value).map_err(refused)?.unusable.into_iter();
    if let Some(error) = unusable.find(|error| !before.contains(error)) {
        return Err(refused(error));
    }
    let revision = replaces.map(|(_, revision)| revision);
    let key = keys.path(&FactKey::Settings);
    let write = Txn {
        when: revision
            .map(|revision| Compare::ModRevision(key.clone(), revision))
            .into_iter()
            .collect(),
        then: vec![Operation::Put {
            key,
            value: value.to_string().into_bytes(),
            lease: 0,
        }],
        otherwise: Vec::new(),
    };
    match dcs.commit(&write).await?.succeeded {
        true => Ok(()),
        false => Err(SettingsChangeError::Conflict),
    }
}

/// `PATCH /config` (merge) and `PUT /config` (replace).
pub async fn change(api: &Api, is_patch: bool, body: &[u8]) -> Response {
    let given: Value = match serde_json::from_slice(body) {
        Ok(Value::Object(given)) if given.is_empty() => {
            let text = "the body is an empty object: there is nothing to change, and a configuration is not emptied";
            return with_status(400, "text/plain", text.to_owned());
        }
        Ok(given @ Value::Object(_)) => given,
        Ok(other) => {
            let text = format!("the body must be a JSON object, found {other}");
            return with_status(400, "text/plain", text);
        }
        Err(error) => {
            return with_status(400, "text/plain", format!("the body is not JSON: {error}"));
        }
    };
    let (dcs, keys) = (api.dcs.as_ref(), &api.keys);
    let done = match is_patch {
        true => patch(dcs, keys, &given).await,
        false => write(dcs, keys, &given, None).await.map(|()| given),
    };
    match done {
        Ok(value) => json(200, &value),
        Err(error) => {
            let status = match &error {
                SettingsChangeError::Unusable(_) => 400,
                SettingsChangeError::Conflict => 409,
                SettingsChangeError::Absent
                | SettingsChangeError::NotJson(_)
                | SettingsChangeError::Dcs(_) => 503,
            };
            with_status(status, "text/plain", error.to_string())
        }
    }
}

async fn patch(dcs: &dyn Dcs, keys: &Keys, patch: &Value) -> Result<Value, SettingsChangeError> {
    let (old, revision) = read(dcs, keys).await?;
    let mut value = old.clone();
    if merge_patch(&mut value, patch) {
        write(dcs, keys, &value, Some((&old, revision))).await?;
    }
    Ok(value)
}
