//! `gatehouse vm`: machines.

mod args;
mod copies;
mod create;
mod exec;
mod lives;
mod show;
mod ssh;
mod stop;

pub use copies::{ForkArgs, SnapshotArgs};
pub use create::Create;
pub use exec::ExecArgs;
pub use lives::{AwaitArgs, ResizeArgs, StartArgs, Which};
pub use show::ListArgs;
pub use ssh::{ASKPASS_VARIABLE, ConfigArgs, CopyArgs, SshArgs};
pub use stop::stop_all;

pub(super) use show::{kept, sizing};

use super::{Api, ClientError};
use clap::Subcommand;
use model::id::VmId;

/// What `timeout(1)` exits with when the time was over.
const TIMED_OUT: u8 = 124;

/// What can be done with machines.
#[derive(Clone, Debug, Subcommand)]
pub enum VmCommand {
    /// Make a VM and wait until it can run commands
    #[command(
        after_help = "Without a snapshot it boots the house's image. From a snapshot with memory it goes on \
        where the snapshot's VM was;\nsuch a one can have a larger disk, but no other CPUs and memory. When nothing is \
        said, a VM is idle after\n300 s without traffic.\n\nExamples:\n  \
        gatehouse vm create\n  \
        gatehouse vm create --name web --memory 2G --domain web.style.dev --port 8000\n  \
        gatehouse vm create --snapshot SNAPSHOT --idle-timeout 60\n  \
        gatehouse vm create --vpc VPC --ip 10.0.0.10 --name db\n  \
        gatehouse vm create --delete-event stop    # nothing is left of it when it stops\n  \
        vm=$(gatehouse vm create --json | jq -r .id)"
    )]
    Create(Create),
    /// List VMs
    #[command(after_help = "Example:\n  gatehouse vm list --state suspended")]
    List(ListArgs),
    /// Show one VM
    Get {
        /// The VM
        vm: VmId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command in a VM; its output and exit status become this command's
    #[command(
        after_help = "One argument is a line for the VM's sh; several are a program and its arguments.\n\
        A VM that sleeps or is stopped is started for it.\n\
        The exit status is the command's, 124 when the time was over.\n\nExamples:\n  \
        gatehouse vm exec VM -- uname -a\n  gatehouse vm exec VM -- 'ls /etc | wc -l'\n  \
        gatehouse vm exec VM --user alice --timeout 60 -- make test"
    )]
    Exec(ExecArgs),
    /// Log in to a VM by SSH, or run a command there; one that is down is started
    #[command(
        after_help = "An identity with a token for this VM and user is made for the login and deleted after it. \
        The exit status is ssh's.\nWith `--` what follows is for ssh: a command.\n\nExamples:\n  \
        gatehouse vm ssh VM\n  gatehouse vm ssh VM --user alice -- make -C src test"
    )]
    Ssh(SshArgs),
    /// Copy files to or from a VM by SSH
    #[command(
        after_help = "Examples:\n  gatehouse vm cp ./a.txt VM:/root/\n  gatehouse vm cp -r VM+alice:src ./src"
    )]
    Cp(CopyArgs),
    /// Print a Host block for ~/.ssh/config, for editors and other programs that use ssh
    #[command(
        after_help = "ssh then asks for a token as the password, unless a key is registered: gatehouse ssh key add\n\n\
        Example:\n  gatehouse vm ssh-config VM >> ~/.ssh/config"
    )]
    SshConfig(ConfigArgs),
    /// Boot stopped VMs, wake those that sleep
    #[command(after_help = "What is said of idleness holds from now on, also for VMs that run already.\n\n\
        Examples:\n  gatehouse vm start VM\n  gatehouse vm start VM --idle-timeout never")]
    Start(StartArgs),
    /// Shut VMs down; their disks are kept
    Stop(Which),
    /// Let VMs sleep as they are: their memory is written to disk and given back to the host
    #[command(
        after_help = "A request to one of its names, a packet, a command, or `vm start` wakes a VM, and it \
        goes on where it was.\nIdle VMs go to sleep by themselves, see --idle-timeout of `vm create`. An ephemeral \
        one is deleted instead,\nunless its event is `stop`.\n\nExample:\n  gatehouse vm suspend VM"
    )]
    Suspend(Which),
    /// Make running copies of a running VM, all from one moment, all or none
    #[command(
        after_help = "The copies share memory and disk with the VM until either writes to it, so they cost \
        little. Each has its own\nidentity: id, host name, address, machine-id, SSH host keys, random numbers. No \
        names lead to them. A VM in a VPC cannot be forked.\nThey are kept as the VM is, when nothing else is said. The ids are printed one a line. At most \
        100 at once.\n\nExamples:\n  \
        gatehouse vm fork VM\n  \
        for fork in $(gatehouse vm fork VM --count 3 --delete-event stop); do\n    \
        gatehouse vm exec $fork -- make test\n  done"
    )]
    Fork(ForkArgs),
    /// Keep a copy of a VM, from which VMs can be made as long as it is there
    #[command(
        after_help = "A VM that runs goes on; of it and of one that sleeps the memory is kept too, and VMs \
        made from the snapshot\ngo on where it was. Of a stopped VM the disk is kept, and they boot. The snapshot's id is \
        printed;\nsee `gatehouse snapshots`.\n\nExample:\n  \
        snapshot=$(gatehouse vm snapshot VM --name ready)\n  gatehouse vm create --snapshot $snapshot"
    )]
    Snapshot(SnapshotArgs),
    /// Give a VM another size; one that is up is stopped and started for it
    #[command(after_help = "What is not said stays. The disk can only grow.\n\nExamples:\n  \
        gatehouse vm resize VM --memory 4G\n  gatehouse vm resize VM --vcpus 2 --disk 40960")]
    Resize(ResizeArgs),
    /// Give memory and disk back to the host that VMs do not use
    Optimize(Which),
    /// End VMs at once, as if by pulling the plug; their disks are kept
    Kill(Which),
    /// Wait until a VM is down, and print why it is
    #[command(
        after_help = "One that sleeps is not down. The exit status is 124 when the time was over.\n\nExample:\n  \
        gatehouse vm await VM --timeout 600"
    )]
    Await(AwaitArgs),
    /// Delete VMs with their disks and mappings; their snapshots stay
    Delete(Which),
}

impl VmCommand {
    /// Does it; returns this process' exit status.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<u8, ClientError> {
        match self {
            Self::Create(create) => create.run(api).await?,
            Self::List(list) => list.run(api).await?,
            Self::Get { vm, json } => show::get(api, &vm, json).await?,
            Self::Exec(exec) => return exec.run(api).await,
            Self::Ssh(ssh) => return ssh.run(api).await,
            Self::Cp(copy) => return copy.run(api).await,
            Self::SshConfig(config) => config.run(api).await?,
            Self::Start(start) => start.run(api).await?,
            Self::Stop(which) => which.stop(api).await?,
            Self::Suspend(which) => which.suspend(api).await?,
            Self::Fork(fork) => fork.run(api).await?,
            Self::Snapshot(snapshot) => snapshot.run(api).await?,
            Self::Resize(resize) => resize.run(api).await?,
            Self::Optimize(which) => which.optimize(api).await?,
            Self::Kill(which) => which.kill(api).await?,
            Self::Await(end) => return end.run(api).await,
            Self::Delete(which) => which.delete(api).await?,
        }
        Ok(0)
    }
}
