//! Repository checks and image building.

mod check;
mod image;

use clap::{Parser, Subcommand};
use std::path::Path;

/// Tasks of the repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check what the compiler and clippy cannot: crate edges, documents, lengths, dependencies.
    Check,
    /// Build the guest's kernel, initramfs and root file system from Debian packages.
    Image(image::Arguments),
}

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository");
    match Arguments::parse().task {
        Task::Check => check::run(root)?,
        Task::Image(arguments) => image::run(root, &arguments)?,
    }
    Ok(())
}
