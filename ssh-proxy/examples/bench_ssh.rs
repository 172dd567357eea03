//! The tests' world for tests/bench/ssh.sh: prints what a shell needs to know of it, and stays until its input ends.

#[path = "../tests/support/mod.rs"]
mod support;

use support::{World, token, vm};

#[tokio::main]
async fn main() {
    let world = World::new();
    // Makes the key that is certified for sshd itself.
    let _direct = world.direct();
    println!(
        "folder={} front={} sshd={} user={},{} pid={} sshd_pid={}",
        world.folder.path().display(),
        world.front.port(),
        world.sshd_port,
        vm(1),
        token(1).expose(),
        world.pid(),
        world.sshd_pid()
    );
    let mut input = String::new();
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut input).ok()).await.ok();
}
