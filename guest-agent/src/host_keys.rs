//! SSH host keys of a machine that becomes another one.
//!
//! The old keys must not be offered once more, so that all of them go away at once. New ones are made of the kinds
//! that were there and that sshd's configuration uses: Ed25519 and ECDSA before the machine is ready, RSA, which can
//! take seconds, afterwards. An sshd that runs is told to begin anew, since from OpenSSH 9.8 on the listener holds the
//! keys for all connections; before, each connection reads them from the files.

use crate::place::Root;
use crate::program::{self, ProgramError};
use crate::pure::host_keys::{kind_of, named, paths, public, wanted};
use model::agent::{MAX_HOST_KEY_BYTES, MAX_HOST_KEYS};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{fs, io};
use thiserror::Error;

/// Where sshd and its keys are configured.
const FOLDER: &str = "/etc/ssh";
/// Where sshd says its process number (Debian's default of `PidFile`).
const SSHD_PID: &str = "/run/sshd.pid";
/// How long `ssh-keygen` may take: RSA on a host that emulates the CPU stays below it.
const KEYGEN_DEADLINE: Duration = Duration::from_secs(120);
/// Most files of the folder that are looked at; a usual one has twenty.
const MAX_FILES: usize = 1000;

/// Why the machine has no keys of its own.
#[derive(Debug, Error)]
pub enum HostKeyError {
    /// The folder cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// An old key stays.
    #[error("cannot remove {path}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// `ssh-keygen` does not do it.
    #[error("ssh-keygen makes no {kind} key")]
    Generate {
        /// Of which kind.
        kind: &'static str,
        /// Why.
        #[source]
        cause: ProgramError,
    },
    /// The new key cannot be put in its place.
    #[error("cannot put {path} in place")]
    Place {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// sshd goes on with the old keys.
    #[error("cannot tell sshd of its new keys")]
    Tell(#[source] io::Error),
}

/// Removes the old keys and makes the new ones, except those of the returned kinds, for which [`make`] is called
/// later. A machine without keys, or without `ssh-keygen`, stays without.
///
/// # Errors
/// See [`HostKeyError`].
pub fn renew(root: &Root, host_name: &str) -> Result<Vec<&'static str>, HostKeyError> {
    let folder = root.at(FOLDER);
    let there = remove_all(&folder)?;
    if there.is_empty() {
        return Ok(vec![]);
    }
    let wanted = wanted(&there, &named(&configuration(&folder)));
    make(root, host_name, &wanted.now)?;
    Ok(wanted.later)
}

/// Makes keys of these kinds, and tells a running sshd.
///
/// # Errors
/// See [`HostKeyError`].
pub fn make(root: &Root, host_name: &str, kinds: &[&'static str]) -> Result<(), HostKeyError> {
    let folder = root.at(FOLDER);
    for kind in kinds {
        match generate(&folder, host_name, kind) {
            Err(HostKeyError::Generate { cause, .. }) if cause.is_absent() => {
                eprintln!(
                    "gatehouse-agent: there is no ssh-keygen; the old SSH host keys are gone all the same"
                );
                break;
            }
            other => other?,
        }
    }
    tell_sshd(&root.at(SSHD_PID)).map_err(HostKeyError::Tell)
}

/// Under another name first, so that no half-written key is ever used.
fn generate(folder: &Path, host_name: &str, kind: &'static str) -> Result<(), HostKeyError> {
    let key = folder.join(format!("ssh_host_{kind}_key"));
    let with = |end: &str| {
        let mut name = key.clone().into_os_string();
        name.push(end);
        PathBuf::from(name)
    };
    let (new, new_public) = (with(".gatehouse-new"), with(".gatehouse-new.pub"));
    for left in [&new, &new_public] {
        remove(left)?;
    }
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", kind, "-N", "", "-C", &format!("root@{host_name}"), "-f"]).arg(&new);
    program::run(&mut command, KEYGEN_DEADLINE).map_err(|cause| HostKeyError::Generate { kind, cause })?;
    for (from, to) in [(new_public, with(".pub")), (new, key.clone())] {
        fs::rename(from, &to).map_err(|cause| HostKeyError::Place { path: to, cause })?;
    }
    Ok(())
}

/// Removes every host key and tells the kinds.
fn remove_all(folder: &Path) -> Result<BTreeSet<String>, HostKeyError> {
    let mut kinds = BTreeSet::new();
    for path in files(folder)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(kind) = kind_of(name) else { continue };
        kinds.insert(kind.to_owned());
        remove(&path)?;
        remove(&path.with_extension("pub"))?;
    }
    Ok(kinds)
}

/// The public halves of the keys that sshd shows: those that its configuration names, or all of the usual names. What
/// has no public half beside it, or none that can be read, is left out.
///
/// # Errors
/// When the folder cannot be read.
pub fn shown(root: &Root) -> Result<Vec<String>, HostKeyError> {
    let folder = root.at(FOLDER);
    let configuration = configuration(&folder);
    let mut halves: BTreeSet<PathBuf> =
        paths(&configuration).filter(|path| path.starts_with('/')).map(|path| root.at(path)).collect();
    if halves.is_empty() {
        let of_sshd = |path: &PathBuf| path.file_name().and_then(|name| kind_of(name.to_str()?)).is_some();
        halves = files(&folder)?.into_iter().filter(of_sshd).collect();
    }
    let key = |path: PathBuf| public(&small_file(&path.with_added_extension("pub")).ok()?);
    Ok(halves.into_iter().filter_map(key).take(MAX_HOST_KEYS).collect())
}

/// A regular file's text, as far as a key could go.
fn small_file(path: &Path) -> io::Result<String> {
    let file = fs::File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    file.take(2 * MAX_HOST_KEY_BYTES as u64).read_to_string(&mut text)?;
    Ok(text)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, HostKeyError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        // No SSH here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(cause) => return Err(HostKeyError::Read { path: folder.to_owned(), cause }),
    };
    let paths: Result<Vec<PathBuf>, io::Error> =
        entries.take(MAX_FILES).map(|entry| entry.map(|entry| entry.path())).collect();
    paths.map_err(|cause| HostKeyError::Read { path: folder.to_owned(), cause })
}

fn remove(path: &Path) -> Result<(), HostKeyError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(HostKeyError::Remove { path: path.to_owned(), cause: error })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// sshd's configuration with its Debian drop-ins; what cannot be read counts as not there, as for sshd's own include.
fn configuration(folder: &Path) -> String {
    let mut paths = vec![folder.join("sshd_config")];
    paths.extend(files(&folder.join("sshd_config.d")).unwrap_or_default());
    paths.iter().map(|path| fs::read_to_string(path).unwrap_or_default() + "\n").collect()
}

/// By the signal that `systemctl reload ssh` ends in, without its detours; it is pending before any client can come.
fn tell_sshd(pid_file: &Path) -> io::Result<()> {
    let Ok(text) = fs::read_to_string(pid_file) else { return Ok(()) };
    let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) else { return Ok(()) };
    // The number may be another process's by now.
    let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap_or_default();
    if name.trim() != "sshd" {
        return Ok(());
    }
    match kill_process(pid, Signal::HUP) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn root_with(keys: &[&str]) -> (tempfile::TempDir, Root) {
        let place = tempfile::tempdir().expect("folder");
        let root = Root::below(place.path().to_owned());
        fs::create_dir_all(root.at("/etc/ssh/sshd_config.d")).expect("folder");
        fs::create_dir_all(root.at("/run")).expect("folder");
        for kind in keys {
            fs::write(root.at(&format!("/etc/ssh/ssh_host_{kind}_key")), "old").expect("key");
            fs::write(root.at(&format!("/etc/ssh/ssh_host_{kind}_key.pub")), "old").expect("key");
        }
        (place, root)
    }

    fn names(root: &Root) -> Vec<String> {
        let mut names: Vec<String> = files(&root.at(FOLDER))
            .expect("folder")
            .into_iter()
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .filter(|name| name.starts_with("ssh_host"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_sshd_shows_is_told() {
        let (_place, root) = root_with(&["ed25519", "ecdsa"]);
        let write = |path: &str, text: &str| fs::write(root.at(path), text).expect("file");
        write("/etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA root@vm\n");
        assert_eq!(shown(&root).expect("keys"), ["ssh-ed25519 AAAA"], "and the other is none");
        write("/etc/ssh/own.pub", "ssh-ed25519 BBBB");
        write(
            "/etc/ssh/sshd_config.d/own.conf",
            "HostKey /etc/ssh/own\nHostKey relative\nHostKey /etc/none\n",
        );
        assert_eq!(shown(&root).expect("keys"), ["ssh-ed25519 BBBB"]);
        write("/etc/ssh/own.pub", &"x".repeat(1 << 20));
        assert!(shown(&root).expect("keys").is_empty());
    }

    #[test]
    fn old_keys_go_and_new_ones_come_the_slow_one_later() {
        let (_place, root) = root_with(&["ed25519", "ecdsa", "rsa", "dsa"]);
        assert_eq!(renew(&root, "vm-new").expect("renewed"), ["rsa"]);
        let fast = [
            "ssh_host_ecdsa_key",
            "ssh_host_ecdsa_key.pub",
            "ssh_host_ed25519_key",
            "ssh_host_ed25519_key.pub",
        ];
        assert_eq!(names(&root), fast);
        let public = fs::read_to_string(root.at("/etc/ssh/ssh_host_ed25519_key.pub")).expect("key");
        assert!(public.starts_with("ssh-ed25519 ") && public.trim_end().ends_with("root@vm-new"), "{public}");
        make(&root, "vm-new", &["rsa"]).expect("made");
        assert_eq!(names(&root).len(), 6);
    }

    #[test]
    fn what_the_configuration_does_not_use_is_not_made_anew() {
        let (_place, root) = root_with(&["ed25519", "rsa"]);
        let drop_in = root.at("/etc/ssh/sshd_config.d/10-gatehouse.conf");
        fs::write(drop_in, "HostKey /etc/ssh/ssh_host_ed25519_key\n").expect("configuration");
        assert!(renew(&root, "vm").expect("renewed").is_empty());
        assert_eq!(names(&root), ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"]);
        let (_place, none) = root_with(&[]);
        assert!(renew(&none, "vm").expect("renewed").is_empty() && names(&none).is_empty());
    }

    #[test]
    fn sshd_is_told_and_no_other_process() {
        let (place, root) = root_with(&["ed25519"]);
        let sshd = place.path().join("sshd");
        fs::copy("/bin/sleep", &sshd).expect("copy");
        let mut told = Command::new(&sshd).arg("1000").spawn().expect("process");
        fs::write(root.at(SSHD_PID), format!("{}\n", told.id())).expect("number");
        renew(&root, "vm").expect("renewed");
        assert_eq!(told.wait().expect("end").signal(), Some(libc::SIGHUP));
        let mut other = Command::new("/bin/sleep").arg("1000").spawn().expect("process");
        fs::write(root.at(SSHD_PID), other.id().to_string()).expect("number");
        renew(&root, "vm").expect("renewed");
        assert!(other.try_wait().expect("running").is_none());
        other.kill().and_then(|()| other.wait()).expect("end");
    }
}
