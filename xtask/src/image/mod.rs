//! `cargo xtask image`: a bootable guest from Debian packages, by name.
//!
//! Every step's result is kept under the digest of what went into it, so a second run only looks.

mod agent;
mod base;
mod digest;
mod initramfs;
mod kernel;
mod output;
mod rootfs;
mod tool;

use digest::Digest;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Files and directories in the image are not younger than this (seconds since the Unix epoch), whenever it is
/// built: the same packages give the same bytes. Debian 13 was released then.
const SOURCE_DATE_EPOCH: &str = "1754697600";

/// What to build.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Debian release of the root file system.
    #[arg(long, value_enum, default_value_t = Suite::Trixie)]
    suite: Suite,
    /// Kernel that the image boots; the root file system has the modules of both.
    #[arg(long, value_enum, default_value_t = kernel::Version::V6_12)]
    kernel: kernel::Version,
    /// Folder of the image; `target/image/default` for kernel 6.12 and `target/image/default-6.1` for 6.1 when absent.
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Look for newer packages. Otherwise those known from the last time are used.
    #[arg(long)]
    refresh: bool,
    /// Build everything twice, from nothing, and compare byte for byte.
    #[arg(long)]
    verify_reproducible: bool,
}

/// A Debian release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Suite {
    /// Debian 13.
    Trixie,
    /// Debian 12.
    Bookworm,
}

impl Suite {
    fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }
}

/// Why there is no image.
#[derive(Debug, Error)]
pub enum ImageError {
    /// File owners can only be set by root.
    #[error("the image's files belong to root and to system users: run this as root")]
    NotRoot,
    /// A program is not installed.
    #[error("{missing} not installed; next: apt-get install -y {packages}")]
    Tools {
        /// Which.
        missing: String,
        /// Where they come from.
        packages: String,
    },
    /// A program failed.
    #[error("{step}: {program} failed ({status}); next: {hint}\n{output}")]
    Tool {
        /// What was being done.
        step: String,
        /// Which program.
        program: String,
        /// How it ended.
        status: String,
        /// What to do about it.
        hint: &'static str,
        /// The end of what it said.
        output: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel package is not as expected.
    #[error("the kernel package")]
    Kernel(#[from] kernel::KernelError),
    /// The initramfs cannot be made.
    #[error("the initramfs")]
    Initramfs(#[from] initramfs::InitramfsError),
    /// Two builds differ.
    #[error("two builds of the same inputs differ in: {0}; both are kept in {1} for a look with cmp(1)")]
    NotReproducible(String, PathBuf),
    /// The manifest cannot be written.
    #[error("cannot encode the manifest")]
    Manifest(#[source] serde_json::Error),
}

/// Names the action and the path of an [`io::Error`].
fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ImageError + 'a {
    move |cause| ImageError::File { action, path: path.to_owned(), cause }
}

/// Where things are.
struct Places {
    /// The repository.
    repository: PathBuf,
    /// Results of steps.
    cache: PathBuf,
}

impl Places {
    /// The image's own files: lists, units, scripts.
    fn data(&self) -> PathBuf {
        self.repository.join("deploy/image")
    }

    /// A list file's entries: one per line, `#` begins a comment.
    fn list(&self, name: &str) -> Result<Vec<String>, ImageError> {
        let path = self.data().join(name);
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim().to_owned());
        Ok(lines.filter(|line| !line.is_empty()).collect())
    }

    /// The place of a step's result, and whether it is there.
    fn cached(&self, step: &str, digest: &Digest) -> (PathBuf, bool) {
        let path = self.cache.join(format!("{step}-{}", digest.short()));
        let there = path.exists();
        (path, there)
    }
}

/// Builds the image, or tells that it is there.
///
/// # Errors
/// See [`ImageError`].
pub fn run(repository: &Path, arguments: &Arguments) -> Result<(), ImageError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ImageError::NotRoot);
    }
    tool::check_installed()?;
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(path) => PathBuf::from(path),
        None => repository.join("target"),
    };
    let cache = target.join("image-cache");
    let usual = || repository.join("target/image").join(arguments.kernel.image_name());
    let folder = arguments.output.clone().unwrap_or_else(usual);
    if arguments.verify_reproducible {
        return verify(repository, &cache, arguments);
    }
    let places = Places { repository: repository.to_owned(), cache };
    build(&places, arguments, &folder)
}

fn build(places: &Places, arguments: &Arguments, folder: &Path) -> Result<(), ImageError> {
    let _lock = output::lock(&places.cache)?;
    say(1, "agent and init: static binaries");
    let programs = agent::build(places)?;
    let mut kernels = Vec::new();
    for version in kernel::Version::ALL {
        say(2, &format!("kernel {}", version.name()));
        kernels.push((version, kernel::unpack(places, version, arguments.refresh)?));
    }
    say(3, &format!("Debian {} packages", arguments.suite.name()));
    let base = base::bootstrap(places, arguments.suite, arguments.refresh)?;
    let modules: Vec<&kernel::Kernel> = kernels.iter().map(|(_, kernel)| kernel).collect();
    say(4, "root file system");
    let rootfs = rootfs::build(places, arguments.suite, &base, &programs, &modules)?;
    let (_, kernel) = kernels
        .iter()
        .find(|(version, _)| *version == arguments.kernel)
        .expect("every version was unpacked just now");
    say(5, "initramfs");
    let initramfs = initramfs::build(places, kernel, &programs)?;
    say(6, &format!("image {}", folder.display()));
    output::assemble(
        folder,
        &output::Parts { suite: arguments.suite.name(), kernel, rootfs: &rootfs, initramfs: &initramfs },
    )
}

/// Two builds from nothing; the second must be the first.
fn verify(repository: &Path, cache: &Path, arguments: &Arguments) -> Result<(), ImageError> {
    let place = cache.join("reproducible");
    if place.exists() {
        fs::remove_dir_all(&place).map_err(failed("remove", &place))?;
    }
    let folders = [place.join("first"), place.join("second")];
    for folder in &folders {
        println!("building in {}", folder.display());
        let places = Places { repository: repository.to_owned(), cache: folder.join("cache") };
        build(&places, arguments, &folder.join("image"))?;
    }
    let [first, second] = folders.each_ref().map(|folder| folder.join("image"));
    let mut differing = Vec::new();
    for name in output::FILES {
        let same = Digest::of_file(&first.join(name))? == Digest::of_file(&second.join(name))?;
        println!("{name}: {}", if same { "the same bytes" } else { "DIFFERENT" });
        if !same {
            differing.push(name);
        }
    }
    if !differing.is_empty() {
        return Err(ImageError::NotReproducible(differing.join(", "), place));
    }
    fs::remove_dir_all(&place).map_err(failed("remove", &place))
}

/// Steps of a build, for the progress lines.
const STEPS: usize = 6;

fn say(step: usize, what: &str) {
    println!("[{step}/{STEPS}] {what}");
}
