//! Stock Linux kernels, from start to each kind of end, through the supervisor. Needs hardware virtualisation:
//!
//! ```text
//! cargo test -p vmm --features guest-tests --test guest --no-run
//! tests/bed -a -t 1200 -- target/debug/deps/guest-… --test-threads=1 --nocapture
//! ```
//!
//! Images are taken from the folders below `GATEHOUSE_IMAGES` (default: `target/image`): each kernel there is
//! booted, and the whole system of the one named `default`.

mod house;

use house::{House, next_exit};
use model::agent::{AGENT_PORT, AgentReply, AgentRequest, BootConfig, FrameKind, HEADER_BYTES};
use model::id::{VmId, VmInstanceId};
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use vmm::client::{Events, ExitReason, MachineSpec, Metadata, Origin, VmmEvent};
use vmm::machine::control::{MEMORY, SUSPENDED};

/// Longest that a kernel takes to its end in the emulated test machine, with others at work beside it.
const BOOT: Duration = Duration::from_secs(300);
/// Longest for a whole system.
const SYSTEM: Duration = Duration::from_secs(900);

fn images() -> Vec<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/image");
    let folder = std::env::var("GATEHOUSE_IMAGES").unwrap_or_else(|_| default.to_owned());
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| {
        panic!("no images in {folder} ({error}): run `cargo xtask image`, or set GATEHOUSE_IMAGES")
    });
    let mut found: Vec<_> = entries.map(|entry| entry.expect("entry").path()).collect();
    found.retain(|path| path.join("kernel").exists());
    found.sort();
    assert!(!found.is_empty(), "no kernel in {folder}");
    found
}

/// Fails where a stock guest cannot run, instead of waiting for one that never comes.
fn need_virtualisation() {
    let flags = std::fs::read_to_string("/proc/cpuinfo").expect("cpuinfo");
    let has = flags.split_whitespace().any(|word| word == "svm" || word == "vmx");
    assert!(has, "this host's CPU shows neither VT-x nor SVM: run this test by tests/bed");
}

/// An image of a kernel, optionally the initramfs of an image, and an init of our own in shell.
fn script_image(house: &House, name: &str, image: &Path, with_modules: bool, script: &str) {
    let target = house.image(name);
    std::os::unix::fs::symlink(image.join("kernel").canonicalize().expect("kernel"), target.join("kernel"))
        .expect("link");
    let mut archive = Vec::new();
    if with_modules {
        archive = std::fs::read(image.join("initramfs")).expect("initramfs");
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let script = format!(
        "#!/bin/busybox sh\nb=/bin/busybox\n$b mkdir -p /proc /sys /dev\n$b mount -t proc proc /proc\n{script}\n"
    );
    for (path, mode, device, content) in [
        ("bin", 0o040_755, 0, b"".as_slice()),
        ("bin/busybox", 0o100_755, 0, &busybox),
        ("dev", 0o040_755, 0, b""),
        ("dev/console", 0o020_600, 1, b""),
        ("init", 0o100_755, 0, script.as_bytes()),
        ("TRAILER!!!", 0, 0, b""),
    ] {
        cpio_entry(&mut archive, path, mode, device, content);
    }
    std::fs::write(target.join("initramfs"), archive).expect("initramfs");
    std::fs::write(target.join("rootfs.img"), [0; 4096]).expect("rootfs");
}

/// One entry of the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst); a device is 5:n.
fn cpio_entry(archive: &mut Vec<u8>, path: &str, mode: u32, device: u32, content: &[u8]) {
    let major = if device == 0 { 0 } else { 5 };
    let name = path.len() as u32 + 1;
    let fields = [1, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, major, device, name, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(path.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

fn spec(number: u8, image: &str, vcpus: u8) -> MachineSpec {
    MachineSpec {
        vm: VmId::from_random([number; 20]),
        instance: VmInstanceId::from_random([number; 20]),
        image: image.into(),
        vcpus,
        memory_mib: 512,
        disk_mib: 2048,
        nic: None,
        boot: BootConfig { hostname: "stock".into(), network: None, unix_nanoseconds: 0, restored: None },
        origin: Origin::Boot,
        idle: None,
        metadata: Metadata::default(),
    }
}

async fn console(house: &House, vm: &VmId) -> String {
    house.client.console(vm, 4000).await.expect("console")
}

/// Waits for a text on the console: the log is a file, and looking again is all one can do with it.
async fn on_console(house: &House, vm: &VmId, text: &str) {
    let begin = Instant::now();
    while !console(house, vm).await.contains(text) {
        assert!(begin.elapsed() < BOOT, "no {text:?} on the console:\n{}", console(house, vm).await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits for the machine's end; what it said until then is told when it does not come.
async fn ended(house: &House, events: &mut Events, machine: &MachineSpec) -> ExitReason {
    let Ok(reason) = timeout(BOOT, next_exit(events, machine)).await else {
        panic!("no end within {BOOT:?}; {}\nthe console:\n{}", threads(), console(house, &machine.vm).await);
    };
    reason
}

/// What each thread of each machine's process does: where in the kernel it waits, and how long it ran.
fn threads() -> String {
    let mut told = String::from("threads (name, state, ticks in user and system mode, waits in):");
    for process in std::fs::read_dir("/proc").expect("/proc").flatten() {
        let command = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        let Ok(tasks) = std::fs::read_dir(process.path().join("task")) else { continue };
        for task in tasks.flatten().filter(|_| command.contains("vmm\0run")) {
            let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let stat = read("stat");
            let words: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let word = |index: usize| words.get(index).copied().unwrap_or("?");
            let (state, user, system) = (word(0), word(11), word(12));
            write!(told, "\n{} {state} {user} {system} {}", read("comm").trim(), read("wchan"))
                .expect("memory");
        }
    }
    told
}

async fn await_agent(events: &mut Events, of: &MachineSpec) {
    let wait = async {
        loop {
            match events.next().await.expect("event") {
                VmmEvent::AgentReady { vm, .. } if vm == of.vm => return,
                VmmEvent::Exited { reason, .. } => panic!("it ended: {reason:?}"),
                VmmEvent::Machine { .. }
                | VmmEvent::Synced
                | VmmEvent::AgentReady { .. }
                | VmmEvent::Idle { .. }
                | VmmEvent::Wake { .. }
                | VmmEvent::Rebooting { .. } => {}
            }
        }
    };
    timeout(SYSTEM, wait).await.expect("the agent reports");
}

#[tokio::test]
async fn stock_kernels_boot_with_one_to_eight_vcpus_and_power_off() {
    need_virtualisation();
    let house = House::open().await;
    let (mut events, _) = house.subscribe().await;
    for (index, image) in images().iter().enumerate() {
        let name = format!("off{index}");
        script_image(
            &house,
            &name,
            image,
            false,
            "echo cpus $($b nproc) kernel $($b uname -r)\n$b poweroff -f",
        );
        for vcpus in [1, 2, 4, 8] {
            let machine = spec(vcpus, &name, vcpus);
            let begin = Instant::now();
            house.client.launch(machine.clone()).await.expect("launch");
            let reason = ended(&house, &mut events, &machine).await;
            let log = console(&house, &machine.vm).await;
            assert_eq!(reason, ExitReason::PoweredOff, "{log}");
            assert!(log.contains(&format!("cpus {vcpus} ")), "{log}");
            println!("{}: {vcpus} vCPUs, start to power-off {:?}", image.display(), begin.elapsed());
            house.client.remove(&machine.vm).await.expect("remove");
        }
    }
}

#[tokio::test]
async fn a_restart_and_a_panic_are_told_apart() {
    need_virtualisation();
    let house = House::open().await;
    let (mut events, _) = house.subscribe().await;
    for (index, image) in images().iter().enumerate() {
        let (again, panic) = (format!("again{index}"), format!("panic{index}"));
        script_image(&house, &again, image, false, "$b reboot -f");
        script_image(&house, &panic, image, false, "echo c > /proc/sysrq-trigger");
        let machine = spec(1, &again, 2);
        house.client.launch(machine.clone()).await.expect("launch");
        let mut restarts = 0;
        while restarts < 2 {
            match timeout(BOOT, events.next()).await.expect("in time").expect("event") {
                VmmEvent::Rebooting { .. } => restarts += 1,
                VmmEvent::Machine { .. } | VmmEvent::Synced => {}
                other => panic!("unexpected {other:?}: {}", console(&house, &machine.vm).await),
            }
        }
        house.client.kill(&machine.vm).await.expect("kill");
        assert_eq!(ended(&house, &mut events, &machine).await, ExitReason::Killed);
        let machine = spec(2, &panic, 2);
        house.client.launch(machine.clone()).await.expect("launch");
        let reason = ended(&house, &mut events, &machine).await;
        assert!(
            matches!(&reason, ExitReason::Panicked { message } if message.contains("sysrq")),
            "{reason:?}"
        );
    }
}

#[tokio::test]
async fn the_power_button_reaches_a_stock_kernel() {
    need_virtualisation();
    let house = House::open().await;
    let (mut events, _) = house.subscribe().await;
    let image = images().into_iter().find(|path| path.ends_with("default")).expect("an image named default");
    let script = "$b mount -t sysfs sys /sys; $b mount -t devtmpfs dev /dev\n\
        for m in evdev button; do $b insmod $($b find / -xdev -name $m.ko | $b head -n 1); done\n\
        echo armed\n$b head -c 24 /dev/input/event0 >/dev/null\n\
        echo pressed\n$b poweroff -f";
    script_image(&house, "button", &image, true, script);
    let machine = spec(1, "button", 1);
    house.client.launch(machine.clone()).await.expect("launch");
    on_console(&house, &machine.vm, "armed").await;
    house.client.stop(&machine.vm, Duration::from_secs(120)).await.expect("stop");
    let reason = ended(&house, &mut events, &machine).await;
    assert_eq!(reason, ExitReason::Stopped, "{}", console(&house, &machine.vm).await);
    assert!(console(&house, &machine.vm).await.contains("pressed"));
}

/// The whole system, as the image of that name in the house.
fn whole_system(house: &House) {
    let image = images().into_iter().find(|path| path.ends_with("default")).expect("an image named default");
    let target = house.image("default");
    for name in ["kernel", "initramfs", "rootfs.img"] {
        let source = image.join(name).canonicalize().expect("file of the image");
        std::os::unix::fs::symlink(source, target.join(name)).expect("link");
    }
}

/// Asks the agent one thing; returns its answer, and what a command printed before.
async fn ask(house: &House, vm: &VmId, request: &AgentRequest) -> (AgentReply, String) {
    let mut stream = house.client.connect(vm, AGENT_PORT).await.expect("connect");
    let payload = serde_json::to_vec(request).expect("json");
    let header = FrameKind::Message.header(payload.len()).expect("short");
    stream.write_all(&[header.as_slice(), &payload].concat()).await.expect("write");
    let mut printed = Vec::new();
    loop {
        let mut header = [0; HEADER_BYTES];
        timeout(BOOT, stream.read_exact(&mut header)).await.expect("in time").expect("header");
        let (kind, length) = FrameKind::parse(header).expect("frame");
        let mut payload = vec![0; length];
        timeout(BOOT, stream.read_exact(&mut payload)).await.expect("in time").expect("payload");
        if kind == FrameKind::Message {
            let reply = serde_json::from_slice(&payload).expect("reply");
            return (reply, String::from_utf8_lossy(&printed).into_owned());
        }
        printed.extend(payload);
    }
}

/// Runs a command in the guest, which succeeds.
async fn run(house: &House, vm: &VmId, command: &str) -> String {
    let (command, timeout_milliseconds) = (command.to_owned(), Some(BOOT.as_millis() as u64));
    let request = AgentRequest::Exec { command, user: None, timeout_milliseconds, output_bytes: 10_000 };
    let (reply, printed) = ask(house, vm, &request).await;
    assert!(matches!(reply, AgentReply::ExecDone { status: Some(0), .. }), "{reply:?}: {printed}");
    printed
}

#[tokio::test]
async fn a_whole_system_reports_answers_and_stops_by_its_agent() {
    need_virtualisation();
    let house = House::open().await;
    let (mut events, _) = house.subscribe().await;
    whole_system(&house);
    let machine = spec(1, "default", 2);
    let begin = Instant::now();
    house.client.launch(machine.clone()).await.expect("launch");
    await_agent(&mut events, &machine).await;
    println!("start to agent ready {:?}", begin.elapsed());
    let group = Path::new("/sys/fs/cgroup/gatehouse").join(machine.vm.as_str());
    let of_group = |file: &str| std::fs::read_to_string(group.join(file)).expect("a cgroup of the VM's own");
    assert_eq!(of_group("memory.max").trim(), ((2 * 512 + 256) << 20).to_string());
    assert_eq!(of_group("cpu.max").trim(), "300000 100000");
    let inside = of_group("cgroup.procs");
    // KVM's own thread for a VM counts in its maker's group, and has no command line.
    let command = |pid: &str| std::fs::read(format!("/proc/{pid}/cmdline")).expect("a process");
    let commands: Vec<_> = inside.lines().map(command).filter(|line| !line.is_empty()).collect();
    assert_eq!(commands.len(), 1, "{commands:?}");
    let (reply, _) = ask(&house, &machine.vm, &AgentRequest::Health).await;
    assert!(matches!(reply, AgentReply::Health { .. }), "{reply:?}");
    let words = run(&house, &machine.vm, "cat /proc/cmdline").await;
    assert!(
        words.split_whitespace().any(|word| word == "mitigations=off"),
        "as the supervisor is told: {words}"
    );
    house.client.stop(&machine.vm, Duration::from_secs(240)).await.expect("stop");
    assert_eq!(ended(&house, &mut events, &machine).await, ExitReason::Stopped);
    assert!(!group.exists(), "an empty cgroup is removed");
}

/// Memory of a process that is of no file, in MiB.
fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// Waits until a process holds so much less memory than `before`. The guest tells nobody when it has given it back.
async fn falls(pid: i32, before: u64, by: u64) {
    let begin = Instant::now();
    while resident(pid) + by > before {
        assert!(begin.elapsed() < BOOT, "{before} MiB became {}, {by} less were expected", resident(pid));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("{before} MiB became {} in {:?}", resident(pid), begin.elapsed());
}

/// Fills memory and makes it free again, which comes back to the host, but for pieces between others.
async fn fill_and_free(house: &House, vm: &VmId, pid: i32) {
    run(house, vm, "head -c 200M /dev/urandom >/dev/shm/block").await;
    let full = resident(pid);
    assert!(full > 200, "{full} MiB");
    run(house, vm, "rm /dev/shm/block").await;
    falls(pid, full, 100).await;
}

#[tokio::test]
async fn a_running_guest_gets_a_larger_disk_and_gives_memory_back() {
    need_virtualisation();
    let house = House::open().await;
    let (mut events, _) = house.subscribe().await;
    whole_system(&house);
    let machine = spec(1, "default", 1);
    let vm = &machine.vm;
    let pid = house.client.launch(machine.clone()).await.expect("launch");
    await_agent(&mut events, &machine).await;

    // The agent reports before the guest has made its keys; this waits for them.
    run(&house, vm, "systemctl start gatehouse-ssh-host-keys.service").await;
    let files = run(&house, vm, "cut -d' ' -f1,2 /etc/ssh/ssh_host_*_key.pub").await;
    let told = house.client.host_keys(vm).await.expect("host keys");
    assert!(!told.is_empty() && told == files.lines().collect::<Vec<_>>(), "{told:?}, {files}");

    let df = "df --block-size=1M --output=size / | tail -n 1";
    let before = run(&house, vm, df).await;
    house.client.grow_disk(vm, 4096).await.expect("grown");
    let (reply, _) = ask(&house, vm, &AgentRequest::GrowDisk).await;
    assert_eq!(reply, AgentReply::Done);
    let after = run(&house, vm, df).await;
    println!("the root file system had {} MiB and has {}", before.trim(), after.trim());
    let mib = |text: &str| text.trim().parse::<u32>().expect("a number");
    assert!(mib(&before) < 2048 && mib(&after) > 3700, "{before} {after}");

    fill_and_free(&house, vm, pid).await;
    run(&house, vm, "head -c 150M /dev/urandom >/var/tmp/cached").await;
    let cached = resident(pid);
    let (reply, _) = ask(&house, vm, &AgentRequest::ReleaseMemory).await;
    assert_eq!(reply, AgentReply::Done);
    falls(pid, cached, 100).await;

    let held = resident(pid);
    house.client.suspend(vm).await.expect("suspend");
    assert_eq!(ended(&house, &mut events, &machine).await, ExitReason::Suspended);
    let state = house.folder_of(vm).join(SUSPENDED).join(MEMORY).metadata().expect("memory");
    let written = state.blocks() * 512 / (1 << 20);
    println!("{written} MiB of memory are written, {held} were held");
    // The guest goes on in between, but not by so much.
    assert!(written < held + 50, "{written} MiB, {held} were held");
    let asleep = MachineSpec { disk_mib: 4096, origin: Origin::Suspended, ..machine.clone() };
    let pid = house.client.launch(asleep).await.expect("resume");
    await_agent(&mut events, &machine).await;
    assert_eq!(run(&house, vm, df).await, after);
    fill_and_free(&house, vm, pid).await;
    house.client.stop(vm, Duration::from_secs(240)).await.expect("stop");
    assert_eq!(ended(&house, &mut events, &machine).await, ExitReason::Stopped);
}
