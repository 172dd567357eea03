//! Clients that are libraries: each feature is a function of a script beside this file.

/// A module of a library's cells, made of its script.
macro_rules! library {
    ($library:ident, $run:expr, $($feature:ident)*) => {
        pub mod $library {
            use crate::bed::Bed;
            $(pub fn $feature(bed: &Bed) {
                let run: fn(&Bed, &str) = $run;
                run(bed, stringify!($feature));
            })*
        }
    };
}

library!(libssh2, |bed, feature| bed.python("by_libssh2.py", feature), command forward many);
library!(libssh, |bed, feature| bed.python("by_libssh.py", feature), command terminal files forward many);
library!(paramiko, |bed, feature| bed.python("by_paramiko.py", feature), command terminal files forward many);
library!(asyncssh, |bed, feature| bed.python("by_asyncssh.py", feature), command terminal files forward many);
library!(
    ssh2,
    |bed, feature| bed.script(std::path::Path::new("node"), "by_ssh2.cjs", feature),
    command terminal files forward many
);
library!(jsch, |bed, feature| bed.java("ByJsch.java", feature), command terminal files forward many);
