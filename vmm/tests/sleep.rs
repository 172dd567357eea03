//! Machines with tiny guests that sleep, wake and multiply, by the programs themselves on this host's `/dev/kvm`.

mod house;
mod tiny;

use feed::wire::BlockingWire;
use house::{House, PATIENCE};
use model::agent::{BootConfig, Identity};
use model::id::{SnapshotId, VmId, VmInstanceId};
use std::process::Command;
use std::time::Duration;
use tiny::Code;
use tokio::time::timeout;
use vmm::client::{
    Events, ExitReason, IdleWatch, MachineSpec, Metadata, Origin, Refusal, VmmError, VmmEvent,
};
use vmm::machine::control::{MachinePlan, MachineRequest, STATE, SUSPENDED, SUSPENDING};
use vmm::machine::handed::Handed;

/// For a stop: nobody listens to the agent's part of it, the button comes after half.
const GRACE: Duration = Duration::from_secs(8);

/// Prints "a"; then "b" at the first event, which a restore raises; then "c" at the second, and powers off.
fn letters() -> Code {
    Code::new().print("a").await_event().print("b").await_event().print("c").power_off()
}

fn spec(number: u8) -> MachineSpec {
    MachineSpec {
        vm: VmId::from_random([number; 20]),
        instance: VmInstanceId::from_random([number; 20]),
        image: "letters".into(),
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

fn from(number: u8, snapshot: &SnapshotId) -> MachineSpec {
    MachineSpec { origin: Origin::Snapshot { snapshot: snapshot.clone() }, ..spec(number) }
}

fn snapshot(number: u8) -> SnapshotId {
    SnapshotId::from_random([number; 20])
}

async fn open() -> (House, Events) {
    let house = House::open().await;
    let image = house.image("letters");
    std::fs::write(image.join("kernel"), letters().elf()).expect("kernel");
    std::fs::write(image.join("initramfs"), b"").expect("initramfs");
    std::fs::write(image.join("rootfs.img"), [0; 4096]).expect("rootfs");
    let (events, _) = house.subscribe().await;
    (house, events)
}

async fn console(house: &House, machine: &MachineSpec, text: &str) {
    let said = async {
        while house.client.console(&machine.vm, 100).await.expect("console") != text {
            tokio::task::yield_now().await;
        }
    };
    let in_time = timeout(PATIENCE, said).await.is_ok();
    assert!(in_time, "{text:?} expected, {:?} said", house.client.console(&machine.vm, 100).await);
}

async fn exit(events: &mut Events, of: &MachineSpec) -> ExitReason {
    timeout(PATIENCE, house::next_exit(events, of)).await.expect("it ends")
}

/// Waits until no process of the house is left but the supervisor.
async fn nobody(house: &House) {
    let gone = async {
        while !house.others().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(PATIENCE, gone).await.is_ok(), "left: {:?}", house.others());
}

fn reason<T: std::fmt::Debug>(result: Result<T, VmmError>) -> Refusal {
    match result.expect_err("a refusal") {
        VmmError::Refused { reason, .. } => reason,
        other => panic!("another error: {other}"),
    }
}

#[tokio::test]
async fn a_machine_sleeps_without_a_process_and_goes_on_where_it_was() {
    let (house, mut events) = open().await;
    let machine = spec(1);
    assert_eq!(reason(house.client.suspend(&machine.vm).await), Refusal::NotRunning);
    house.client.launch(machine.clone()).await.expect("launch");
    console(&house, &machine, "a").await;
    house.client.suspend(&machine.vm).await.expect("suspend");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
    nobody(&house).await;
    house.client.suspend(&machine.vm).await.expect("suspended already");
    let asleep = MachineSpec { origin: Origin::Suspended, ..machine.clone() };
    house.client.launch(asleep.clone()).await.expect("resume");
    console(&house, &machine, "ab").await;
    assert!(!house.folder_of(&machine.vm).join(SUSPENDED).exists(), "a state is used once");
    house.client.suspend(&machine.vm).await.expect("suspend again");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
    house.client.launch(asleep.clone()).await.expect("resume again");
    // The second restore raises the second event.
    assert_eq!(exit(&mut events, &machine).await, ExitReason::PoweredOff);
    console(&house, &machine, "abc").await;
    assert_eq!(reason(house.client.launch(asleep).await), Refusal::NoState);
    house.client.remove(&machine.vm).await.expect("remove");
    nobody(&house).await;
}

#[tokio::test]
async fn a_boot_gives_a_suspended_state_up_and_a_bad_one_is_refused_and_kept() {
    let (house, mut events) = open().await;
    let machine = spec(1);
    house.client.launch(machine.clone()).await.expect("launch");
    console(&house, &machine, "a").await;
    house.client.suspend(&machine.vm).await.expect("suspend");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
    let asleep = MachineSpec { origin: Origin::Suspended, ..machine.clone() };
    let larger = MachineSpec { memory_mib: 128, ..asleep.clone() };
    assert_eq!(reason(house.client.launch(larger).await), Refusal::StateUnfit);
    let state = house.folder_of(&machine.vm).join(SUSPENDED).join(STATE);
    let good = std::fs::read(&state).expect("state");
    std::fs::write(&state, &good[..good.len() / 2]).expect("damage");
    assert_eq!(reason(house.client.launch(asleep.clone()).await), Refusal::StateUnfit);
    std::fs::write(&state, good).expect("mend");
    house.client.launch(asleep).await.expect("it is still there");
    console(&house, &machine, "ab").await;
    house.client.suspend(&machine.vm).await.expect("suspend");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
    house.client.launch(machine.clone()).await.expect("boot");
    console(&house, &machine, "aba").await;
    assert!(!state.exists());
}

#[tokio::test]
async fn forks_go_on_from_one_moment_and_neither_side_sees_the_other() {
    let (house, mut events) = open().await;
    let parent = spec(1);
    house.client.launch(parent.clone()).await.expect("launch");
    console(&house, &parent, "a").await;
    let copy = snapshot(1);
    assert_eq!(reason(house.client.launch(from(9, &copy)).await), Refusal::NoState);
    house.client.freeze(&parent.vm, &copy).await.expect("freeze");
    let children: Vec<_> = (10..18).map(|number| from(number, &copy)).collect();
    for child in &children {
        house.client.launch(child.clone()).await.expect("fork");
    }
    for child in &children {
        console(&house, child, "b").await;
    }
    console(&house, &parent, "a").await;
    house.client.remove_snapshot(&copy).await.expect("let go");
    assert_eq!(reason(house.client.launch(from(9, &copy)).await), Refusal::NoState);
    house.client.stop(&parent.vm, GRACE).await.expect("stop");
    // The parent has had no restore: the button is its first event, and it waits for a second.
    assert_eq!(exit(&mut events, &parent).await, ExitReason::Killed);
    console(&house, &parent, "ab").await;
    for child in &children {
        house.client.stop(&child.vm, GRACE).await.expect("stop");
        console(&house, child, "bc").await;
    }
    nobody(&house).await;
}

#[tokio::test]
async fn snapshots_of_running_sleeping_and_stopped_machines_outlive_them() {
    let (house, mut events) = open().await;
    let machine = spec(1);
    house.client.launch(machine.clone()).await.expect("launch");
    console(&house, &machine, "a").await;
    assert!(house.client.snapshot(&machine.vm, &snapshot(1)).await.expect("of a running one"));
    assert!(house.client.snapshot(&machine.vm, &snapshot(1)).await.expect("once more"));
    house.client.suspend(&machine.vm).await.expect("suspend");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
    assert!(house.client.snapshot(&machine.vm, &snapshot(2)).await.expect("of a sleeping one"));
    house.client.launch(machine.clone()).await.expect("boot");
    console(&house, &machine, "aa").await;
    house.client.kill(&machine.vm).await.expect("kill");
    assert!(!house.client.snapshot(&machine.vm, &snapshot(3)).await.expect("of a stopped one"));
    house.client.remove(&machine.vm).await.expect("remove");
    assert_eq!(reason(house.client.snapshot(&machine.vm, &snapshot(4)).await), Refusal::NotRunning);
    for (number, taken, said) in [(11, 1, "b"), (12, 2, "b"), (13, 3, "a"), (14, 1, "b")] {
        let child = from(number, &snapshot(taken));
        house.client.launch(child.clone()).await.expect("launch");
        console(&house, &child, said).await;
    }
    for number in 1..=3 {
        house.client.remove_snapshot(&snapshot(number)).await.expect("remove");
        house.client.remove_snapshot(&snapshot(number)).await.expect("remove again");
    }
    // Those that were made of them go on, and can be copied in turn.
    let child = from(11, &snapshot(1));
    assert!(house.client.snapshot(&child.vm, &snapshot(5)).await.expect("of a child"));
    let grandchild = from(15, &snapshot(5));
    house.client.launch(grandchild.clone()).await.expect("launch");
    console(&house, &grandchild, "c").await;
    for number in [11, 12, 13, 14, 15] {
        house.client.remove(&spec(number).vm).await.expect("remove");
    }
    nobody(&house).await;
    let left = std::fs::read_dir(house.folder.path().join("data/snapshots")).expect("folder").count();
    assert_eq!(left, 1, "the one that nobody removed");
}

#[tokio::test]
async fn a_supervisor_that_dies_takes_frozen_copies_with_it_and_nothing_else() {
    let (mut house, _) = open().await;
    let machine = spec(1);
    house.client.launch(machine.clone()).await.expect("launch");
    console(&house, &machine, "a").await;
    house.client.freeze(&machine.vm, &snapshot(1)).await.expect("freeze");
    house.client.launch(from(2, &snapshot(1))).await.expect("fork");
    house.restart();
    let (mut events, present) = house.subscribe().await;
    let mut there: Vec<_> = present
        .iter()
        .map(|event| match event {
            VmmEvent::Machine { vm, .. } => vm.clone(),
            other => panic!("unexpected {other:?}"),
        })
        .collect();
    there.sort();
    let mut expected = vec![spec(1).vm, spec(2).vm];
    expected.sort();
    assert_eq!(there, expected);
    assert_eq!(reason(house.client.launch(from(3, &snapshot(1))).await), Refusal::NoState);
    house.client.suspend(&machine.vm).await.expect("an adopted one can be suspended");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
    house.client.remove(&machine.vm).await.expect("remove");
    house.client.remove(&spec(2).vm).await.expect("remove");
    nobody(&house).await;
    assert_eq!(std::fs::read_dir(house.folder.path().join("data/snapshots")).expect("folder").count(), 0);
}

#[tokio::test]
async fn a_resume_whose_supervisor_is_gone_leaves_the_state_for_the_next() {
    let (house, mut events) = open().await;
    let machine = spec(1);
    house.client.launch(machine.clone()).await.expect("launch");
    console(&house, &machine, "a").await;
    house.client.suspend(&machine.vm).await.expect("suspend");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
    let asleep = MachineSpec { origin: Origin::Suspended, ..machine.clone() };
    let image = house.image("letters");
    let plan = MachinePlan {
        spec: asleep.clone(),
        kernel: image.join("kernel"),
        initramfs: image.join("initramfs"),
        rootfs: image.join("rootfs.img"),
        folder: house.folder_of(&machine.vm),
        console_bytes: 1 << 16,
        user: None,
        command_line: String::new(),
        restore: Some(Identity::Same),
    };
    let (near, far) = feed::wire::pair().expect("sockets");
    let near = BlockingWire::of(near);
    let handed = Handed::open(&plan, vec![]).expect("files");
    // It gives its order and is gone before the process can do anything about it.
    near.send(&MachineRequest::Start(Box::new(plan)), &handed.descriptors()).expect("order");
    drop(near);
    let program = Command::new(env!("CARGO_BIN_EXE_vmm")).arg("run").stdin(far).status().expect("process");
    assert!(!program.success(), "nobody waits for the machine");
    house.client.launch(asleep).await.expect("resume");
    console(&house, &machine, "ab").await;
}

#[tokio::test]
async fn an_idle_machine_is_told_once_a_period_until_it_is_not_watched() {
    let (house, mut events) = open().await;
    let idle = Some(IdleWatch { seconds: 1, threshold_bytes: 1 });
    let machine = MachineSpec { idle, ..spec(1) };
    house.client.launch(machine.clone()).await.expect("launch");
    for _ in 0..2 {
        let told = async {
            while !matches!(events.next().await.expect("event"), VmmEvent::Idle { vm, .. } if vm == machine.vm)
            {
            }
        };
        timeout(PATIENCE, told).await.expect("idle is told");
    }
    house.client.watch_idle(&machine.vm, None).await.expect("unwatched");
    house.client.kill(&machine.vm).await.expect("kill");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Killed);
}

#[tokio::test]
async fn a_suspend_is_broken_off_by_whoever_wants_something() {
    let (house, mut events) = open().await;
    let machine = spec(1);
    house.client.launch(machine.clone()).await.expect("launch");
    console(&house, &machine, "a").await;
    // Nobody listens in this guest, but that is for the guest to say: it must be there for that.
    let mut broken_off = 0;
    for _ in 0..3 {
        let (suspended, connected) =
            tokio::join!(house.client.suspend(&machine.vm), house.client.connect(&machine.vm, 1024));
        drop(connected);
        match suspended {
            Err(VmmError::Refused { reason: Refusal::Woken, .. }) => broken_off += 1,
            Ok(()) => {
                assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
                let asleep = MachineSpec { origin: Origin::Suspended, ..machine.clone() };
                house.client.launch(asleep).await.expect("resume");
                break;
            }
            Err(other) => panic!("{other}"),
        }
        assert!(!house.folder_of(&machine.vm).join(SUSPENDING).exists(), "nothing is left of it");
    }
    assert!(broken_off > 0, "the connection comes while it is written");
}

#[tokio::test]
async fn a_disk_that_grew_under_its_machine_stays_so() {
    let (house, mut events) = open().await;
    let sized = |machine: &MachineSpec, disk_mib| MachineSpec { disk_mib, ..machine.clone() };
    let machine = spec(1);
    assert_eq!(reason(house.client.grow_disk(&machine.vm, 2).await), Refusal::NotRunning);
    house.client.launch(machine.clone()).await.expect("launch");
    console(&house, &machine, "a").await;
    for size in [2, 2] {
        house.client.grow_disk(&machine.vm, size).await.expect("grown");
    }
    assert_eq!(reason(house.client.grow_disk(&machine.vm, 1).await), Refusal::Disk);
    house.client.suspend(&machine.vm).await.expect("suspend");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Suspended);
    let asleep = MachineSpec { origin: Origin::Suspended, ..machine.clone() };
    assert_eq!(reason(house.client.launch(asleep.clone()).await), Refusal::Disk, "no disk shrinks");
    house.client.launch(sized(&asleep, 3)).await.expect("it grew once more in its sleep");
    console(&house, &machine, "ab").await;
    assert!(house.client.snapshot(&machine.vm, &snapshot(1)).await.expect("snapshot"));
    let copy = from(2, &snapshot(1));
    assert_eq!(reason(house.client.launch(sized(&copy, 2)).await), Refusal::Disk);
    house.client.launch(sized(&copy, 4)).await.expect("a copy on a larger disk");
    assert_eq!(exit(&mut events, &copy).await, ExitReason::PoweredOff);
    house.client.grow_disk(&machine.vm, 5).await.expect("grown");
    house.client.kill(&machine.vm).await.expect("kill");
    assert_eq!(exit(&mut events, &machine).await, ExitReason::Killed);
    house.client.optimize(&machine.vm).await.expect("merged at the size that it has");
    assert_eq!(reason(house.client.launch(sized(&machine, 3)).await), Refusal::Disk);
    house.client.launch(sized(&machine, 5)).await.expect("launch");
    house.client.kill(&machine.vm).await.expect("kill");
}
