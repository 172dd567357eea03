//! Tells whoever waits that the house is open: a service manager, a script, a person.

use super::house;
use crate::settings::Settings;
use crate::tls;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;
use std::time::Duration;

/// Who waits.
#[derive(Clone, Debug, Default)]
pub struct Waiters {
    /// `NOTIFY_SOCKET` of a service manager (`sd_notify(3)`).
    pub manager: Option<OsString>,
    /// A descriptor on which a script waits for the line `READY=1`.
    pub descriptor: Option<u32>,
}

impl Waiters {
    /// Tells that the house is open. The file comes last, for those who watch it.
    ///
    /// # Errors
    /// When somebody cannot be told.
    pub fn ready(&self, settings: &Settings) -> io::Result<()> {
        self.manager("READY=1")?;
        if let Some(descriptor) = self.descriptor {
            house::inherited(descriptor)?.write_all(b"READY=1\n")?;
        }
        std::fs::write(ready_file(settings), format!("{}\n", std::process::id()))
    }

    /// Tells that the house closes.
    ///
    /// # Errors
    /// When somebody cannot be told.
    pub fn closing(&self, settings: &Settings) -> io::Result<()> {
        forget(settings)?;
        self.manager("STOPPING=1")
    }

    fn manager(&self, word: &str) -> io::Result<()> {
        let Some(name) = &self.manager else { return Ok(()) };
        UnixDatagram::unbound()?.send_to_addr(word.as_bytes(), &address(name)?).map(|_| ())
    }
}

/// Removes the ready file; at the start too, since a killed gatehouse leaves it.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn forget(settings: &Settings) -> io::Result<()> {
    match std::fs::remove_file(ready_file(settings)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What a person reads when all is well.
#[must_use]
pub fn welcome(settings: &Settings, took: Duration) -> String {
    let port = match settings.public_https_port {
        443 => String::new(),
        port => format!(":{port}"),
    };
    let domain = &settings.domain;
    let ca = settings.data_dir.join("tls").join(tls::CA_FILE);
    let plain =
        settings.api_listen.map(|address| format!("\n            http://{address} (plain, for this host)"));
    let run_dir = match settings.run_dir.to_str() {
        Some(crate::settings::RUN_DIR) => String::new(),
        _ => format!(" --run-dir {}", settings.run_dir.display()),
    };
    format!(
        "\nGatehouse is ready ({:.1} s).\n\
         \x20 API       https://api.{domain}{port}{}\n\
         \x20 Previews  https://<any name>.{domain}{port}\n\
         \x20 SSH       {} port {} (gatehouse{run_dir} vm ssh VM)\n\
         \x20 CA        {} (clients must trust it)\n\
         \x20 Next      gatehouse{run_dir} api-key create --name me\n\
         \x20           gatehouse{run_dir} vm create\n\
         \x20           gatehouse{run_dir} domains map hello.{domain} --vm VM --port 8000\n\
         \x20           curl --cacert {} --connect-to ::127.0.0.1:{} https://hello.{domain}{port}/\n\
         \x20 Stop      Ctrl-C (VMs are shut down), twice to stop at once",
        took.as_secs_f64(),
        plain.unwrap_or_default(),
        settings.ssh.door.host.as_ref().map_or_else(|| format!("vm-ssh.{domain}"), ToString::to_string),
        settings.ssh.door.port,
        ca.display(),
        ca.display(),
        settings.https.port(),
    )
}

fn ready_file(settings: &Settings) -> PathBuf {
    settings.run_dir.join("ready")
}

/// A path, or with a leading `@` an abstract name.
fn address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Host, Wishes};
    use std::io::Read;
    use std::os::fd::AsRawFd;

    #[test]
    fn all_who_wait_are_told() {
        let folder = tempfile::tempdir().expect("folder");
        let wishes = Wishes { run_dir: Some(folder.path().to_owned()), ..Wishes::default() };
        let settings = wishes.settle(Host { memory_mib: 8192 }).expect("settings");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("manager");
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        let waiters = Waiters {
            manager: Some(folder.path().join("notify").into()),
            descriptor: u32::try_from(writer.as_raw_fd()).ok(),
        };
        waiters.ready(&settings).expect("told");
        drop(writer);
        let mut word = [0; 32];
        let length = socket.recv(&mut word).expect("a word");
        assert_eq!(&word[..length], b"READY=1");
        let mut line = String::new();
        reader.read_to_string(&mut line).expect("a line");
        assert_eq!(line, "READY=1\n");
        assert!(folder.path().join("ready").exists());
        waiters.closing(&settings).expect("told");
        assert!(!folder.path().join("ready").exists());
        assert!(welcome(&settings, Duration::from_secs(1)).contains("https://api.style.dev"));
    }
}
