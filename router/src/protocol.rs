//! PostgreSQL's wire protocol, as far as the router must read it. Pure: bytes in, facts out.

pub mod exchange;
pub mod frame;
pub mod messages;
pub mod notices;
pub mod records;
pub mod settings;
pub mod splice;
pub mod sqlstate;
pub mod startup;
pub mod veil;
