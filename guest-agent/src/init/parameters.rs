//! What the kernel's command line says to the initramfs.

use std::path::PathBuf;

/// `gatehouse.…` parameters; the others belong to the kernel and to systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The block device with the root file system (`gatehouse.root=`).
    pub root: PathBuf,
    /// The system's first process (`gatehouse.init=`).
    pub init: PathBuf,
}

impl Parameters {
    /// Reads `/proc/cmdline`. The last of a repeated parameter counts, as in the kernel.
    #[must_use]
    pub fn of(command_line: &str) -> Self {
        let mut parameters = Self { root: "/dev/vda".into(), init: "/sbin/init".into() };
        for word in command_line.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("gatehouse.root", device)) => parameters.root = device.into(),
                Some(("gatehouse.init", program)) => parameters.init = program.into(),
                Some(_) | None => {}
            }
        }
        parameters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_words_count_and_others_do_not() {
        let given = Parameters::of("quiet gatehouse.root=/dev/vdb console=ttyS0 gatehouse.init=/bin/sh\n");
        assert_eq!(given, Parameters { root: "/dev/vdb".into(), init: "/bin/sh".into() });
        let none = Parameters::of("root=/dev/sda init=/x gatehouse.rootx=/y gatehouse.root");
        assert_eq!(none, Parameters { root: "/dev/vda".into(), init: "/sbin/init".into() });
    }
}
