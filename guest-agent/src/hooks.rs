//! What programs in the VM want done after a restore: every executable of a folder, in the order of their names.

use crate::error_chain;
use crate::place::Root;
use crate::program;
use model::agent::Identity;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The folder.
const FOLDER: &str = "/etc/gatehouse/restored.d";
/// Most hooks that are run; more are a mistake.
const MAX_HOOKS: usize = 64;
/// How long one may take: enough to restart a service, and the others must have their turn.
const HOOK_DEADLINE: Duration = Duration::from_secs(30);
/// Write permission of the group and of others.
const OTHERS_WRITE: u32 = 0o022;

/// Runs all hooks, one after the other. What fails is a line in the log, and the others run all the same.
pub fn run_all(root: &Root, identity: Identity) {
    let word = match identity {
        Identity::Same => "same",
        Identity::New => "new",
    };
    let hooks = match find(&root.at(FOLDER)) {
        Ok(hooks) => hooks,
        Err(error) => return eprintln!("gatehouse-agent: no hooks of {FOLDER} are run: {error}"),
    };
    for hook in hooks {
        if let Err(error) = program::run(Command::new(&hook).arg(word), HOOK_DEADLINE) {
            eprintln!("gatehouse-agent: hook {}: {}", hook.display(), error_chain(&error));
        }
    }
}

/// The executables, sorted; those that somebody else than root could have written are named in the log.
fn find(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::metadata(folder) {
        Ok(facts) if is_roots_own(&facts) => {}
        Ok(_) => return Err(io::Error::other("the folder must be root's, and not writable by others")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    }
    let mut hooks = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // Of a link, what it leads to.
        let facts = match fs::metadata(&path) {
            Ok(facts) => facts,
            Err(error) => {
                eprintln!("gatehouse-agent: hook {} is left out: {error}", path.display());
                continue;
            }
        };
        if !facts.is_file() || facts.permissions().mode() & 0o111 == 0 {
            continue;
        }
        if !is_roots_own(&facts) {
            eprintln!(
                "gatehouse-agent: hook {} is left out: it must be root's, and not writable by others",
                path.display()
            );
        } else if hooks.len() == MAX_HOOKS {
            return Err(io::Error::other(format!("there are more than {MAX_HOOKS}")));
        } else {
            hooks.push(path);
        }
    }
    hooks.sort();
    Ok(hooks)
}

fn is_roots_own(facts: &Metadata) -> bool {
    facts.uid() == 0 && facts.mode() & OTHERS_WRITE == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
    }

    #[test]
    fn roots_own_executables_run_in_order_with_the_word() {
        let place = tempfile::tempdir().expect("folder");
        let root = Root::below(place.path().to_owned());
        run_all(&root, Identity::New);
        let folder = root.at(FOLDER);
        fs::create_dir_all(&folder).expect("folder");
        let said = place.path().join("said");
        let hook = |name: &str, more: &str| {
            let path = folder.join(name);
            let text = format!("#!/bin/sh\necho {name} \"$1\" >> {}\n{more}\n", said.display());
            fs::write(&path, text).expect("hook");
            with_mode(&path, 0o755);
            path
        };
        hook("20-second", "");
        hook("10-first", "exit 1");
        with_mode(&hook("30-open", ""), 0o775);
        std::os::unix::fs::chown(hook("31-foreign", ""), Some(1000), None).expect("owner");
        with_mode(&hook("32-no-program", ""), 0o644);
        run_all(&root, Identity::New);
        assert_eq!(fs::read_to_string(&said).expect("said"), "10-first new\n20-second new\n");
        with_mode(&folder, 0o777);
        run_all(&root, Identity::Same);
        with_mode(&folder, 0o755);
        run_all(&root, Identity::Same);
        let all = fs::read_to_string(&said).expect("said");
        assert_eq!(all, "10-first new\n20-second new\n10-first same\n20-second same\n");
    }
}
