//! The operator's and the user's command line: it opens the house (`up`), examines the host (`doctor`), and asks
//! the API (`vm`, `snapshots`, `domains`, `api-key`, `status`). It links none of the other processes; it starts them.

pub mod acme_settings;
pub mod cli;
pub mod client;
pub mod doctor;
pub mod domains_settings;
pub mod edge_settings;
pub mod program;
pub mod pure;
pub mod settings;
pub mod ssh_settings;
pub mod sys;
pub mod table;
pub mod tls;
pub mod up;
pub mod vpn_settings;
