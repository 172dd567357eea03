//! The jail of VMs' processes, seen from outside, and the system calls that it leaves them.

mod house;
mod tiny;

use house::{House, PATIENCE, next_exit};
use model::agent::BootConfig;
use model::id::{SnapshotId, VmId, VmInstanceId};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use tiny::Code;
use tokio::time::timeout;
use vmm::client::{Events, ExitReason, IdleWatch, MachineSpec, Metadata, Origin};
use vmm::seccomp::{self, Role};

/// Tells the child of `a_call_that_is_not_listed_ends_the_process` which call to make.
const CALL: &str = "GATEHOUSE_TEST_CALL";
/// Prefix of the signal that ends such a process.
const SIGSYS: i32 = 31;

fn spec(number: u8, image: &str) -> MachineSpec {
    MachineSpec {
        vm: VmId::from_random([number; 20]),
        instance: VmInstanceId::from_random([number; 20]),
        image: image.into(),
        vcpus: 1,
        memory_mib: 64,
        disk_mib: 1,
        nic: None,
        boot: BootConfig { hostname: "tiny".into(), network: None, unix_nanoseconds: 0, restored: None },
        origin: Origin::Boot,
        idle: None,
        metadata: Metadata::default(),
    }
}

fn image(house: &House, name: &str, code: Code) {
    let image = house.image(name);
    for (file, bytes) in [("kernel", code.elf()), ("initramfs", Vec::new()), ("rootfs.img", vec![0; 4096])] {
        std::fs::write(image.join(file), bytes).expect("image");
    }
}

/// A line of `/proc/PID/status`, without its name.
fn status(pid: i32, line: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let found = text.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(':'));
    found.unwrap_or_else(|| panic!("no {line} in {text}")).trim().to_owned()
}

#[tokio::test]
async fn a_machine_has_nothing_of_the_host() {
    let house = House::open().await;
    image(&house, "spin", Code::new().print("a").spin());
    let (a, b) = (spec(1, "spin"), spec(2, "spin"));
    let pids = [
        house.client.launch(a.clone()).await.expect("launch"),
        house.client.launch(b.clone()).await.expect("launch"),
    ];
    let owners = [&a, &b].map(|machine| house.folder_of(&machine.vm).metadata().expect("folder"));
    assert_ne!(owners[0].uid(), owners[1].uid(), "each has a user of its own");
    for (pid, folder) in pids.into_iter().zip(owners) {
        let user = folder.uid();
        assert!(user >= 1_880_000_000, "{user}");
        assert_eq!(folder.mode() & 0o777, 0o700);
        for line in ["Uid", "Gid"] {
            assert_eq!(status(pid, line), [user.to_string().as_str(); 4].join("\t"), "{line}");
        }
        assert_eq!(status(pid, "Groups"), "");
        for line in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(pid, line), "0000000000000000", "{line}");
        }
        assert_eq!((status(pid, "NoNewPrivs").as_str(), status(pid, "Seccomp").as_str()), ("1", "2"));
        let root = std::fs::read_dir(format!("/proc/{pid}/root/")).expect("root");
        assert_eq!(root.count(), 0, "its root is empty");
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("mounts");
        assert_eq!(mounts.lines().count(), 1, "{mounts}");
        assert!(mounts.contains(" ro,"), "{mounts}");
        for kind in ["mnt", "net", "ipc", "uts", "cgroup"] {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace");
            assert_ne!(of(&pid.to_string()), of("self"), "{kind}");
        }
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("line");
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
        for thread in threads {
            let thread = thread.expect("thread").file_name().into_string().expect("a number");
            assert_eq!(status(thread.parse().expect("a number"), "Seccomp"), "2");
        }
    }
    for place in ["vms", "snapshots"] {
        let facts = house.folder.path().join("data").join(place).metadata().expect("folder");
        assert_eq!(
            (facts.uid(), facts.mode() & 0o777),
            (0, 0o700),
            "{place}: no way leads up and down again"
        );
    }
}

#[tokio::test]
async fn a_fork_gets_a_user_of_its_own_with_its_next_process() {
    let house = House::open().await;
    let (mut events, _) = house.subscribe().await;
    image(&house, "spin", Code::new().print("a").spin());
    let (parent, copy) = (spec(1, "spin"), SnapshotId::from_random([1; 20]));
    house.client.launch(parent.clone()).await.expect("launch");
    house.client.freeze(&parent.vm, &copy).await.expect("freeze");
    let fork = MachineSpec { origin: Origin::Snapshot { snapshot: copy.clone() }, ..spec(2, "spin") };
    house.client.launch(fork.clone()).await.expect("fork");
    let owner = |machine: &MachineSpec| house.folder_of(&machine.vm).metadata().expect("folder").uid();
    assert_eq!(owner(&fork), owner(&parent));
    house.client.suspend(&fork.vm).await.expect("suspend");
    assert_eq!(timeout(PATIENCE, next_exit(&mut events, &fork)).await.expect("end"), ExitReason::Suspended);
    let awake = MachineSpec { origin: Origin::Suspended, ..fork.clone() };
    house.client.launch(awake).await.expect("wake");
    assert_ne!(owner(&fork), owner(&parent));
    // What both have of the disk is nobody's to write.
    for entry in std::fs::read_dir(house.folder_of(&fork.vm)).expect("folder") {
        let facts = entry.expect("entry").metadata().expect("facts");
        if facts.nlink() > 1 && facts.is_file() {
            assert_eq!((facts.uid(), facts.mode() & 0o777), (0, 0o444));
        }
    }
}

/// Folders of VMs are their processes' to fill: nothing in them may lead the supervisor elsewhere.
#[tokio::test]
async fn links_in_a_machines_folder_lead_nowhere() {
    let house = House::open().await;
    let (mut events, _) = house.subscribe().await;
    image(&house, "spin", Code::new().print("a").spin());
    let (machine, other) = (spec(1, "spin"), spec(2, "spin"));
    for one in [&machine, &other] {
        house.client.launch(one.clone()).await.expect("launch");
        house.client.suspend(&one.vm).await.expect("suspend");
        timeout(PATIENCE, next_exit(&mut events, one)).await.expect("end");
    }
    let folder = house.folder_of(&machine.vm);
    let secret = house.folder.path().join("secret");
    std::fs::write(&secret, b"of the host's").expect("secret");
    let replace = |name: &str, with: &std::path::Path| {
        let path = folder.join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path).expect("gone")
        } else {
            drop(std::fs::remove_file(&path))
        }
        std::os::unix::fs::symlink(with, &path).expect("link");
    };
    replace("console.log", &secret);
    assert!(house.client.console(&machine.vm, 100).await.is_err(), "the log of another file");
    replace("spec.json.new", &secret);
    replace("suspended", &house.folder_of(&other.vm).join("suspended"));
    let copy = SnapshotId::from_random([1; 20]);
    assert!(house.client.snapshot(&machine.vm, &copy).await.is_err(), "the memory of another VM");
    std::fs::remove_file(folder.join("suspended")).expect("unlink");
    std::fs::remove_file(folder.join("console.log")).expect("unlink");
    house.client.launch(machine.clone()).await.expect("boot");
    assert_eq!(std::fs::read(&secret).expect("secret"), b"of the host's");
    assert_eq!(secret.metadata().expect("facts").uid(), 0);
    // Another VM's sockets in the place of its own.
    for name in ["control.sock", "vsock.sock"] {
        replace(name, &house.folder_of(&other.vm).join(name));
    }
    house.client.launch(MachineSpec { origin: Origin::Suspended, ..other.clone() }).await.expect("wake");
    assert!(house.client.connect(&machine.vm, 1024).await.is_err(), "a stream to another VM");
    assert!(house.client.suspend(&machine.vm).await.is_err(), "an order to another VM");
    house.client.kill(&machine.vm).await.expect("kill");
    house.client.kill(&other.vm).await.expect("kill");
}

/// The child of the next test: makes one call with the lists of one role.
#[test]
fn one_call() {
    let Ok(wanted) = std::env::var(CALL) else { return };
    let (role, call) = wanted.split_once(' ').expect("two words");
    let role = match role {
        "main" => Role::Main,
        "vcpu" => Role::Vcpu,
        "device" => Role::Device,
        "writer" => Role::Writer,
        other => panic!("{other}"),
    };
    seccomp::enter().expect("lists");
    if role != Role::Main {
        seccomp::take(role).expect("list");
    }
    match call {
        "none" => {}
        "inet" => {
            drop(rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None))
        }
        "unix" => {
            drop(rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None))
        }
        "exec" => drop(Command::new("/bin/true").status()),
        "kill" => {
            assert!(
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::CHILD)
                    .is_ok()
            )
        }
        "open" => drop(std::fs::File::open("/dev/null")),
        "epoll" => drop(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::empty())),
        "user" => drop(rustix::process::getuid()),
        "sync" => rustix::fs::sync(),
        other => panic!("{other}"),
    }
    std::process::exit(7);
}

#[test]
fn a_call_that_is_not_listed_ends_the_process() {
    let ended = |wanted: &str| {
        let mut child = Command::new(std::env::current_exe().expect("own program"));
        child.args(["--exact", "one_call", "--nocapture"]).env(CALL, wanted);
        child.output().expect("child").status
    };
    for allowed in
        ["main none", "vcpu none", "device none", "writer none", "main open", "main unix", "main epoll"]
    {
        assert_eq!(ended(allowed).code(), Some(7), "{allowed}");
    }
    for forbidden in [
        "main inet",
        "main exec",
        "main kill",
        "main user",
        "main sync",
        "vcpu unix",
        "vcpu epoll",
        "device open",
        "device inet",
        "device epoll",
        "writer unix",
        "writer epoll",
        "writer exec",
    ] {
        assert_eq!(ended(forbidden).signal(), Some(SIGSYS), "{forbidden}");
    }
}

/// Calls that a life may do without, and what leads to them.
const AT_TIMES: &[(&str, &str)] = &[
    ("SYS_mremap", "a buffer that grows to a large one"),
    ("SYS_sched_yield", "a lock for which two threads spin"),
    ("SYS_gettid", "an abort, a thread that looks who holds a lock"),
    ("SYS_restart_syscall", "the freezer, a wait that a signal broke"),
    ("SYS_futex", "a lock that is waited for; not traced"),
    ("SYS_newfstatat", "a suspend that is broken off, as an idle VM's is when a stop comes"),
];
/// Calls that none of the tiny guests below leads to, and what does.
const ELSEWHERE: &[(&str, &str)] = &[
    ("SYS_clock_gettime", "a host whose clock source has no vDSO"),
    ("SYS_fstat", "a newer glibc's way to look at a folder"),
    ("SYS_epoll_wait", "glibc's, where the library takes it"),
    ("SYS_epoll_pwait2", "a wait with a limit: a guest's driver of vsock"),
    ("SYS_pwrite64", "a guest's driver of the disk"),
    ("SYS_fallocate", "a guest that discards"),
    ("SYS_readv", "a NIC"),
    ("SYS_writev", "a NIC"),
    ("SYS_connect", "a guest's driver of vsock"),
    ("SYS_recvfrom", "a guest's driver of vsock"),
    ("SYS_sendto", "a guest's driver of vsock"),
    ("SYS_shutdown", "a guest's driver of vsock"),
    ("SYS_getsockopt", "a guest's driver of vsock"),
    ("SYS_copy_file_range", "layers with data"),
];

/// A list that nobody looks at only grows. This runs a life with all that can be asked for, under `strace`.
#[tokio::test]
async fn each_call_on_the_lists_is_made() {
    let trace = tempfile::NamedTempFile::new().expect("file");
    let path = trace.path().to_str().expect("UTF-8").to_owned();
    // The vCPU's calls are many and slow to trace, and of one kind.
    let calls = "trace=!futex";
    let house = House::open_by(&["strace", "-f", "-qq", "-e", "signal=none", "-e", calls, "-o", &path]).await;
    let (mut events, _) = house.subscribe().await;
    live(&house, &mut events).await;
    drop(house);
    let seen = jailed_calls(&std::fs::read_to_string(trace.path()).expect("trace"));
    let known: HashSet<&str> = ELSEWHERE.iter().map(|(name, _)| *name).collect();
    let at_times: HashSet<&str> = AT_TIMES.iter().map(|(name, _)| *name).collect();
    let listed: BTreeSet<&str> = seccomp::calls(Role::Main).map(|call| call.name).collect();
    let was_seen = |name: &&str| seen.contains(name.trim_start_matches("SYS_"));
    let told: HashSet<&str> = known.union(&at_times).copied().collect();
    let unused: Vec<_> = listed.iter().filter(|name| !was_seen(name) && !told.contains(**name)).collect();
    assert!(unused.is_empty(), "nobody makes {unused:?}: take them off, or say what does");
    let found: Vec<_> = known.iter().filter(|name| was_seen(name)).collect();
    assert!(found.is_empty(), "{found:?} are made here");
}

async fn live(house: &House, events: &mut Events) {
    image(house, "letters", Code::new().print("a").await_event().print("b").await_event().power_off());
    image(house, "reset", Code::new().reset());
    let idle = Some(IdleWatch { seconds: 1, threshold_bytes: 1 });
    let machine = MachineSpec { idle, ..spec(1, "letters") };
    house.client.launch(machine.clone()).await.expect("launch");
    let copies = [1, 2].map(|number| SnapshotId::from_random([number; 20]));
    house.client.freeze(&machine.vm, &copies[0]).await.expect("freeze");
    let fork = MachineSpec { origin: Origin::Snapshot { snapshot: copies[0].clone() }, ..spec(2, "letters") };
    house.client.launch(fork.clone()).await.expect("fork");
    house.client.snapshot(&machine.vm, &copies[1]).await.expect("snapshot");
    house.client.optimize(&machine.vm).await.expect("optimize");
    house.client.suspend(&machine.vm).await.expect("suspend");
    assert_eq!(timeout(PATIENCE, next_exit(events, &machine)).await.expect("end"), ExitReason::Suspended);
    house.client.launch(MachineSpec { origin: Origin::Suspended, ..machine.clone() }).await.expect("wake");
    let restored =
        MachineSpec { origin: Origin::Snapshot { snapshot: copies[1].clone() }, ..spec(3, "letters") };
    house.client.launch(restored.clone()).await.expect("restore");
    house.client.launch(spec(4, "reset")).await.expect("launch");
    for one in [&machine, &fork, &restored] {
        house.client.stop(&one.vm, std::time::Duration::from_secs(8)).await.expect("stop");
        timeout(PATIENCE, next_exit(events, one)).await.expect("end");
    }
    house.client.kill(&spec(4, "reset").vm).await.expect("kill");
}

/// Names of the calls that threads made after they had their lists, and the copies that they made of themselves.
fn jailed_calls(trace: &str) -> HashSet<String> {
    let mut jailed: HashSet<&str> = HashSet::new();
    let mut waiting: HashMap<&str, bool> = HashMap::new();
    let mut seen = HashSet::new();
    for line in trace.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        assert!(!rest.contains("killed by SIGSYS"), "{line}");
        let resumed = rest.strip_prefix("<... ");
        let name: &str = resumed.unwrap_or(rest).split(['(', ' ']).next().unwrap_or_default();
        if jailed.contains(thread) {
            seen.insert(name.to_owned());
        }
        let done = !rest.ends_with("<unfinished ...>");
        if matches!(name, "clone" | "clone3" | "fork")
            && done
            && jailed.contains(thread)
            && let Some(child) = rest.rsplit("= ").next()
        {
            jailed.insert(child);
        }
        // The first list comes by two calls; the thread is in jail with the second.
        if name == "seccomp"
            && rest.contains("SECCOMP_SET_MODE_FILTER")
            && waiting.insert(thread, true).is_some()
        {
            jailed.insert(thread);
        }
    }
    seen
}
