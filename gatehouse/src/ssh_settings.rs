//! SSH's part of the settings: flags `--ssh-…`, and the table `[ssh]` of the file.

use crate::settings::{SettingsError, value};
use clap::Args;
use model::config::{SshDoor, SshLimits};
use model::host::HostName;
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Where SSH is served when nothing else is said: most hosts have an sshd of their own at port 22.
const PORT: u16 = 2222;
/// What a channel may hold back: a packet of SSH (RFC 4253, section 6.1), and what a path of 10 Gbit/s and 50 ms holds.
const CHANNEL_BYTES: RangeInclusive<u32> = 35_000..=64 << 20;

/// What the command line says of SSH.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct SshWishes {
    /// Where SSH is served [default: 0.0.0.0:2222]
    #[arg(id = "ssh_listen", long = "ssh-listen", value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where SSH clients reach their VMs, as do names below it [default: vm-ssh. of the domain]
    #[arg(id = "ssh_host", long = "ssh-host", value_name = "NAME")]
    pub host: Option<HostName>,
    /// The port that SSH clients see, if it is another one than the listener's
    #[arg(id = "ssh_port", long = "ssh-port", value_name = "PORT")]
    pub port: Option<u16>,
    /// Bounds, in the file alone.
    #[arg(skip)]
    pub limits: Option<SshLimits>,
}

/// What is true of SSH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSettings {
    /// TCP listener.
    pub listen: SocketAddr,
    /// What clients are told.
    pub door: SshDoor,
    /// What they may take.
    pub limits: SshLimits,
}

impl SshWishes {
    /// Joins two sources: what `self` says wins.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            listen: self.listen.or(below.listen),
            host: self.host.or(below.host),
            port: self.port.or(below.port),
            limits: self.limits.or(below.limits),
        }
    }

    /// Fills in what nobody said, and checks all of it.
    ///
    /// # Errors
    /// [`SettingsError::Value`] for the first value that cannot be.
    pub fn settle(self) -> Result<SshSettings, SettingsError> {
        let listen = self.listen.unwrap_or((Ipv4Addr::UNSPECIFIED, PORT).into());
        let limits = self.limits.unwrap_or_default();
        for (setting, got) in [
            ("ssh.limits.connections", limits.connections),
            ("ssh.limits.unauthenticated", limits.unauthenticated),
            ("ssh.limits.unauthenticated_per_address", limits.unauthenticated_per_address),
            ("ssh.limits.sessions_per_vm", limits.sessions_per_vm),
            ("ssh.limits.channels", limits.channels),
            ("ssh.limits.login_attempts", limits.login_attempts),
        ] {
            if got == 0 {
                return Err(value(setting, got, "it must be at least 1, or nobody could log in".to_owned()));
            }
        }
        if !CHANNEL_BYTES.contains(&limits.channel_bytes) {
            let why = format!("it must be within {} and {}", CHANNEL_BYTES.start(), CHANNEL_BYTES.end());
            return Err(value("ssh.limits.channel_bytes", limits.channel_bytes, why));
        }
        let door = SshDoor { host: self.host, port: self.port.unwrap_or(listen.port()) };
        Ok(SshSettings { listen, door, limits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(text: &str) -> Result<SshSettings, SettingsError> {
        toml::from_str::<SshWishes>(text).expect("wishes").settle()
    }

    #[test]
    fn the_port_that_clients_see_is_the_listeners_unless_it_is_said() {
        let settings = settle("").expect("defaults");
        assert_eq!((settings.listen.port(), settings.door.port, settings.door.host), (2222, 2222, None));
        assert_eq!(settle("listen = \"[::]:22\"").expect("good").door.port, 22);
        assert_eq!(settle("port = 22").expect("good").listen.port(), 2222);
        let limits = settle("[limits]\nchannels = 10").expect("good").limits;
        assert_eq!((limits.channels, limits.connections), (10, SshLimits::default().connections));
    }

    #[test]
    fn bad_values_are_named() {
        for (text, name) in [
            ("[limits]\nchannels = 0", "ssh.limits.channels = 0"),
            ("[limits]\nlogin_attempts = 0", "ssh.limits.login_attempts = 0"),
            ("[limits]\nchannel_bytes = 1", "ssh.limits.channel_bytes = 1"),
            ("[limits]\nchannel_bytes = 4000000000", "ssh.limits.channel_bytes = 4000000000"),
        ] {
            let error = settle(text).expect_err(text).to_string();
            assert!(error.starts_with(name), "{text}: {error}");
        }
        for misspelt in
            ["lissen = 1", "[limits]\nchanels = 1", "[limits]\nlogin_seconds = 0", "host = \"a b\""]
        {
            assert!(toml::from_str::<SshWishes>(misspelt).is_err(), "{misspelt}");
        }
    }
}
