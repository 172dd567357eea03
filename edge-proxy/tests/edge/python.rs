//! Programs of PyPI, by the versions in `requirements.txt`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// Longest that an installation or a scan may take on a busy machine.
const LONGEST: Duration = Duration::from_secs(900);

/// A file beside this one.
pub fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/edge").join(name)
}

/// Runs a command to its end: whether it succeeded, and what it said.
pub async fn run(command: &mut Command) -> (bool, String) {
    let done = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let done = timeout(LONGEST, done).await.expect("in time").expect("it is installed");
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    (done.status.success(), said.into_owned())
}

/// The folder of the programs, made when it is first asked for or the versions have changed.
pub async fn programs() -> &'static Path {
    static PLACE: OnceCell<PathBuf> = OnceCell::const_new();
    PLACE.get_or_init(make).await
}

async fn make() -> PathBuf {
    let wanted = here("requirements.txt");
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("edge-python");
    let (made_of, text) = (place.join("made-of"), std::fs::read_to_string(&wanted).expect("there"));
    if std::fs::read_to_string(&made_of).ok().as_ref() != Some(&text) {
        if place.exists() {
            std::fs::remove_dir_all(&place).expect("removed");
        }
        let (made, said) = run(Command::new("python3").args(["-m", "venv"]).arg(&place)).await;
        assert!(made, "{said}");
        let mut pip = Command::new(place.join("bin/pip"));
        pip.args(["install", "-q", "--disable-pip-version-check", "--no-deps", "-r"]).arg(&wanted);
        let (installed, said) = run(&mut pip).await;
        assert!(installed, "{said}");
        std::fs::write(&made_of, text).expect("written");
    }
    place.join("bin")
}
