//! Debian's part: package lists with a memory, single packages, and a root file system of many.

use super::digest::Digest;
use super::{ImageError, Places, SOURCE_DATE_EPOCH, Suite, failed, tool};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const NETWORK_HINT: &str =
    "see that deb.debian.org can be reached and that debian-archive-keyring is installed";
/// What no guest reads: it is half of the bytes.
const EXCLUDED: [&str; 4] =
    ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"];
/// Licences must stay.
const INCLUDED: [&str; 1] = ["/usr/share/doc/*/copyright"];

/// Debian packages, unpacked and configured, as a tar archive.
pub struct Base {
    /// The archive.
    pub tar: PathBuf,
    /// Of what went into it.
    pub digest: Digest,
}

fn sources(suite: Suite) -> [String; 3] {
    let name = suite.name();
    let line = |mirror: &str, suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main");
    [
        line(MIRROR, name),
        line(MIRROR, &format!("{name}-updates")),
        line(SECURITY_MIRROR, &format!("{name}-security")),
    ]
}

/// apt with lists and settings of its own: this machine's are not looked at and not touched.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// With the lists of the last time, or new ones when there are none or they are wanted.
    pub fn open(places: &Places, suite: Suite, refresh: bool) -> Result<Self, ImageError> {
        let folder = places.cache.join(format!("apt-{}", suite.name()));
        let apt = Self { folder };
        for name in ["state/lists/partial", "cache/archives/partial", "etc/parts"] {
            let path = apt.folder.join(name);
            fs::create_dir_all(&path).map_err(failed("make", &path))?;
        }
        apt.write("sources.list", &(sources(suite).join("\n") + "\n"))?;
        apt.write("status", "")?;
        apt.write("apt.conf", &apt.settings())?;
        let complete = apt.folder.join("complete");
        if refresh || !complete.exists() {
            println!("      package lists of {} from {MIRROR}", suite.name());
            tool::run(
                apt.command("apt-get").args(["--error-on=any", "update"]),
                "package lists",
                NETWORK_HINT,
            )?;
            apt.write("complete", "")?;
        }
        Ok(apt)
    }

    fn settings(&self) -> String {
        let folder = self.folder.display();
        format!(
            "Dir::State \"{folder}/state/\";\nDir::State::status \"{folder}/status\";\n\
             Dir::Cache \"{folder}/cache/\";\nDir::Etc::SourceList \"{folder}/sources.list\";\n\
             Dir::Etc::SourceParts \"{folder}/etc/parts\";\nDir::Etc::Parts \"{folder}/etc/parts\";\n\
             Dir::Etc::PreferencesParts \"{folder}/etc/parts\";\nDir::Etc::Preferences \"{folder}/etc/none\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\n"
        )
    }

    fn write(&self, name: &str, text: &str) -> Result<(), ImageError> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(failed("write", &path))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join("apt.conf"));
        command
    }

    /// Which state of the archive is known: of the signed lists.
    pub fn digest(&self) -> Result<Digest, ImageError> {
        let lists = self.folder.join("state/lists");
        let mut found = Vec::new();
        for entry in fs::read_dir(&lists).map_err(failed("list", &lists))? {
            let path = entry.map_err(failed("list", &lists))?.path();
            if path.to_string_lossy().ends_with("Release") {
                found.push(Digest::of_file(&path)?.as_str().to_owned());
            }
        }
        found.sort();
        Ok(Digest::of_texts(found.iter().map(String::as_str)))
    }

    /// The package that a package without content stands for, such as the newest kernel.
    pub fn first_dependency(&self, package: &str) -> Result<Option<String>, ImageError> {
        let mut command = self.command("apt-cache");
        command.args(["--no-recommends", "--no-suggests", "depends", package]);
        let text = tool::run(&mut command, "looking for the newest kernel", NETWORK_HINT)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        Ok(text.lines().find_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned)))
    }

    /// Downloads a package into a folder, checked by apt.
    pub fn download(&self, package: &str, folder: &Path) -> Result<(), ImageError> {
        let mut command = self.command("apt-get");
        command.args(["download", package]).current_dir(folder);
        tool::run(&mut command, &format!("download of {package}"), NETWORK_HINT).map(drop)
    }
}

/// Makes the archive, unless the same packages were put together before.
pub fn bootstrap(places: &Places, suite: Suite, refresh: bool) -> Result<Base, ImageError> {
    let apt = Apt::open(places, suite, refresh)?;
    let packages = places.list("packages.txt")?.join(",");
    let known = apt.digest()?;
    let sources = sources(suite);
    let excluded = EXCLUDED.join(" ") + &INCLUDED.join(" ");
    let digest = Digest::of_texts(
        [known.as_str(), &packages, &excluded, SOURCE_DATE_EPOCH]
            .into_iter()
            .chain(sources.iter().map(String::as_str)),
    );
    let (tar, there) = places.cached("base", &digest);
    if there {
        println!("      unchanged");
        return Ok(Base { tar, digest });
    }
    println!(
        "      installing {} packages and what they need; this takes a minute",
        packages.split(',').count()
    );
    let new = tar.with_extension("new");
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--mode=root", "--format=tar", "--architectures=amd64"]);
    command.arg(format!("--include={packages}"));
    command.args(EXCLUDED.map(|path| format!("--dpkgopt=path-exclude={path}")));
    command.args(INCLUDED.map(|path| format!("--dpkgopt=path-include={path}")));
    command.arg(suite.name()).arg(&new).args(&sources).env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH);
    tool::run(&mut command, "installing Debian packages", NETWORK_HINT)?;
    fs::rename(&new, &tar).map_err(failed("rename", &new))?;
    Ok(Base { tar, digest })
}
