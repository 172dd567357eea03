//! Linux users, from `/etc/passwd` and `/etc/group`: a static program has no name service switch.

use crate::sys::identity::Identity;
use std::io;
use thiserror::Error;

/// Most supplementary groups of a process (`NGROUPS_MAX` is 65536; this is what a person can have).
const MAX_GROUPS: usize = 1024;

/// Why a user cannot be had.
#[derive(Debug, Error)]
pub enum UserError {
    /// Not in `/etc/passwd`.
    #[error("there is no Linux user {0:?}")]
    Unknown(String),
    /// A file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Finds the user; root when no name is given.
///
/// # Errors
/// When there is no such user, or the files cannot be read.
pub fn find(name: Option<&str>) -> Result<Identity, UserError> {
    let Some(name) = name else { return Ok(Identity { uid: 0, gid: 0, groups: vec![0] }) };
    let passwd = read("/etc/passwd")?;
    let group = read("/etc/group")?;
    lookup(name, &passwd, &group).ok_or_else(|| UserError::Unknown(name.to_owned()))
}

fn read(path: &'static str) -> Result<String, UserError> {
    let bytes = std::fs::read(path).map_err(|cause| UserError::Read { path, cause })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// As getpwnam(3) and getgrouplist(3) do with the `files` service.
fn lookup(name: &str, passwd: &str, group: &str) -> Option<Identity> {
    // Names that begin so are not users but directives of the old NIS format.
    if name.is_empty() || name.starts_with(['+', '-']) {
        return None;
    }
    let (uid, gid) = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let same = fields.next()? == name;
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        same.then_some((uid, gid))
    })?;
    let others = group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let number: u32 = fields.nth(2)?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == name).then_some(number)
    });
    let mut groups = vec![gid];
    for number in others {
        if !groups.contains(&number) && groups.len() < MAX_GROUPS {
            groups.push(number);
        }
    }
    Some(Identity { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\nbroken\nann:x:1000:1001:,,:/home/ann:/bin/sh\n\
                          bad:x:nan:1:::\n+nis:x:5:5:::\n";
    const GROUP: &str =
        "root:x:0:\nann:x:1001:\nsudo:x:27:bob,ann\ndup:x:27:ann\nnot:x:30:anna\nbad:x:y:ann\n";

    #[test]
    fn users_and_their_groups_are_found() {
        let ann = Identity { uid: 1000, gid: 1001, groups: vec![1001, 27] };
        assert_eq!(lookup("ann", PASSWD, GROUP), Some(ann));
        for name in ["bad", "+nis", "", "broken", "nobody", "ann:x"] {
            assert_eq!(lookup(name, PASSWD, GROUP), None, "{name}");
        }
        assert_eq!(find(None).expect("root").uid, 0);
        assert!(matches!(find(Some("no such user")), Err(UserError::Unknown(_))));
    }

    proptest! {
        #[test]
        fn no_files_make_the_lookup_panic(name in ".{0,8}", passwd in "[a-z0-9:,\n]{0,200}", group in ".{0,200}") {
            if let Some(found) = lookup(&name, &passwd, &group) {
                prop_assert_eq!(found.groups[0], found.gid);
            }
        }
    }
}
