//! The two programs of ours that go into the guest.

use super::digest::Digest;
use super::{ImageError, Places, failed, tool};
use std::path::PathBuf;
use std::process::Command;

/// The C library is linked in: the initramfs has none, and the agent must not depend on the guest's.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const TARGET_FLAGS: &str = "-C target-feature=+crt-static -C strip=symbols";

/// Where they are.
pub struct Programs {
    /// The agent.
    pub agent: PathBuf,
    /// The first process of the initramfs.
    pub init: PathBuf,
    /// Of the agent.
    pub agent_digest: Digest,
    /// Of the init.
    pub init_digest: Digest,
}

/// Builds both. Cargo knows by itself what is up to date.
pub fn build(places: &Places) -> Result<Programs, ImageError> {
    // A folder of its own: other flags in the same one would make cargo build everything again and again.
    let folder = places.cache.join("programs");
    // Panics name source files; where this checkout and this build are must not show in the bytes.
    let remap = format!(
        "{TARGET_FLAGS} --remap-path-prefix={}=/gatehouse --remap-path-prefix={}=/build",
        places.repository.display(),
        folder.display()
    );
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&places.repository).args([
        "build",
        "--locked",
        "--release",
        "--package",
        "guest-agent",
    ]);
    cargo.args(["--target", TARGET, "--target-dir"]).arg(&folder);
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", remap).env_remove("RUSTFLAGS");
    // Its programs are small: optimising over crates costs minutes and gains nothing that can be measured.
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    tool::run(
        &mut cargo,
        "building the guest's programs",
        "cargo build -p guest-agent shows the errors in full",
    )?;
    let built = folder.join(TARGET).join("release");
    let (agent, init) = (built.join("gatehouse-agent"), built.join("gatehouse-init"));
    for program in [&agent, &init] {
        program.metadata().map_err(failed("find", program))?;
    }
    let (agent_digest, init_digest) = (Digest::of_file(&agent)?, Digest::of_file(&init)?);
    Ok(Programs { agent, init, agent_digest, init_digest })
}
