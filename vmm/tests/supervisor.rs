//! The supervisor and the VMs' processes, as programs, with tiny guests: launch, ends, kills and adoption.

mod house;
mod tiny;

use feed::wire::{Wire, WireError};
use house::{House, PATIENCE};
use model::agent::BootConfig;
use model::id::{VmId, VmInstanceId};
use std::path::Path;
use std::time::Duration;
use tiny::Code;
use tokio::time::timeout;
use vmm::client::{Events, ExitReason, MachineSpec, Metadata, Origin, Refusal, VmmError, VmmEvent};
use vmm::machine::control::{MachineMessage, MachineRequest, SOCKET};

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

fn tiny_image(house: &House, name: &str, code: Code) {
    let image = house.image(name);
    std::fs::write(image.join("kernel"), code.elf()).expect("kernel");
    std::fs::write(image.join("initramfs"), b"").expect("initramfs");
    std::fs::write(image.join("rootfs.img"), [0; 4096]).expect("rootfs");
}

async fn next_exit(events: &mut Events, of: &MachineSpec) -> ExitReason {
    timeout(PATIENCE, house::next_exit(events, of)).await.expect("it ends")
}

fn refused(result: Result<i32, VmmError>) -> Refusal {
    match result.expect_err("a refusal") {
        VmmError::Refused { reason, .. } => reason,
        other => panic!("another error: {other}"),
    }
}

#[tokio::test]
async fn a_machine_runs_and_each_end_is_told_apart() {
    let house = House::open().await;
    tiny_image(&house, "off", Code::new().print("bye\n").power_off());
    tiny_image(&house, "fault", Code::new().triple_fault());
    tiny_image(&house, "panic", Code::new().print("Kernel panic - not syncing: tiny\n").reset());
    let (mut events, present) = house.subscribe().await;
    assert_eq!(present, []);
    let off = spec(1, "off");
    house.client.launch(off.clone()).await.expect("launch");
    assert_eq!(next_exit(&mut events, &off).await, ExitReason::PoweredOff);
    assert_eq!(house.client.console(&off.vm, 100).await.expect("console"), "bye\n");
    let fault = spec(2, "fault");
    house.client.launch(fault.clone()).await.expect("launch");
    let reason = next_exit(&mut events, &fault).await;
    assert!(matches!(&reason, ExitReason::Kvm { message } if message.contains("rip 0x")), "{reason:?}");
    let panic = spec(3, "panic");
    house.client.launch(panic.clone()).await.expect("launch");
    let message = "Kernel panic - not syncing: tiny".to_owned();
    assert_eq!(next_exit(&mut events, &panic).await, ExitReason::Panicked { message });
    house.client.remove(&off.vm).await.expect("remove");
    assert!(!house.folder_of(&off.vm).exists());
    house.client.remove(&off.vm).await.expect("remove again");
}

#[tokio::test]
async fn a_guest_restarts_in_its_process_until_it_is_killed() {
    let house = House::open().await;
    tiny_image(&house, "loop", Code::new().print("again\n").reset());
    let (mut events, _) = house.subscribe().await;
    let machine = spec(1, "loop");
    let pid = house.client.launch(machine.clone()).await.expect("launch");
    let mut rebooted = 0;
    while rebooted < 3 {
        match timeout(PATIENCE, events.next()).await.expect("in time").expect("event") {
            VmmEvent::Rebooting { vm, .. } if vm == machine.vm => rebooted += 1,
            VmmEvent::Machine { pid: said, .. } => assert_eq!(said, pid),
            other => panic!("unexpected {other:?}"),
        }
    }
    house.client.kill(&machine.vm).await.expect("kill");
    assert_eq!(next_exit(&mut events, &machine).await, ExitReason::Killed);
    house.client.kill(&machine.vm).await.expect("kill again");
}

#[tokio::test]
async fn stop_presses_the_button_and_then_kills() {
    let house = House::open().await;
    tiny_image(&house, "polite", Code::new().await_event().power_off());
    tiny_image(&house, "deaf", Code::new().spin());
    let (mut events, _) = house.subscribe().await;
    let (polite, deaf) = (spec(1, "polite"), spec(2, "deaf"));
    for machine in [&polite, &deaf] {
        house.client.launch(machine.clone()).await.expect("launch");
    }
    house.client.stop(&polite.vm, Duration::from_secs(30)).await.expect("stop");
    assert_eq!(next_exit(&mut events, &polite).await, ExitReason::Stopped);
    house.client.stop(&deaf.vm, Duration::from_secs(2)).await.expect("stop");
    assert_eq!(next_exit(&mut events, &deaf).await, ExitReason::Killed);
    house.client.stop(&deaf.vm, Duration::from_secs(2)).await.expect("stop again");
}

#[tokio::test]
async fn a_process_that_dies_is_told_and_a_supervisor_that_dies_is_survived() {
    let mut house = House::open().await;
    tiny_image(&house, "spin", Code::new().print("up\n").spin());
    let (mut events, _) = house.subscribe().await;
    let (first, second) = (spec(1, "spin"), spec(2, "spin"));
    let pid = house.client.launch(first.clone()).await.expect("launch");
    assert_eq!(house.client.launch(first.clone()).await.expect("launch again"), pid);
    let second_pid = house.client.launch(second.clone()).await.expect("launch");
    let victim = rustix::process::Pid::from_raw(pid).expect("pid");
    rustix::process::kill_process(victim, rustix::process::Signal::KILL).expect("kill -9");
    let reason = next_exit(&mut events, &first).await;
    assert!(matches!(&reason, ExitReason::ProcessDied { message } if message.contains('9')), "{reason:?}");
    house.restart();
    let (mut events, present) = house.subscribe().await;
    let VmmEvent::Machine { vm, instance, pid: adopted, agent_ready } = &present[0] else {
        panic!("adopted: {present:?}")
    };
    assert_eq!((vm, instance, *adopted, *agent_ready), (&second.vm, &second.instance, second_pid, false));
    assert_eq!(present.len(), 1);
    let other_run = MachineSpec { instance: VmInstanceId::from_random([9; 20]), ..second.clone() };
    assert_eq!(refused(house.client.launch(other_run).await), Refusal::Busy);
    house.client.remove(&second.vm).await.expect("remove");
    assert_eq!(next_exit(&mut events, &second).await, ExitReason::Killed);
    assert!(!house.folder_of(&second.vm).exists());
}

#[tokio::test]
async fn bad_requests_are_refused_by_kind() {
    let house = House::open().await;
    tiny_image(&house, "good", Code::new().spin());
    tiny_image(&house, "broken", Code::new().spin());
    std::fs::write(house.folder.path().join("data/images/broken/kernel"), b"no kernel").expect("write");
    let good = spec(1, "good");
    let too_many = MachineSpec { vcpus: 9, ..good.clone() };
    let too_small = MachineSpec { memory_mib: 1, ..good.clone() };
    let outside = MachineSpec { image: "../good".into(), ..good.clone() };
    for bad in [too_many, too_small, outside] {
        assert_eq!(refused(house.client.launch(bad).await), Refusal::BadSpec);
    }
    for image in ["missing", "broken"] {
        let bad = MachineSpec { image: image.into(), ..good.clone() };
        assert_eq!(refused(house.client.launch(bad).await), Refusal::Image, "{image}");
    }
    let network = model::id::Generation(1);
    let nic = vmm::client::NicSpec { mac: "02:67:00:00:00:01".parse().expect("mac"), generation: network };
    let alone = MachineSpec { nic: Some(nic), ..good.clone() };
    assert_eq!(refused(house.client.launch(alone).await), Refusal::Network);
    assert!(matches!(
        house.client.connect(&good.vm, 1024).await,
        Err(VmmError::Refused { reason: Refusal::NotRunning, .. })
    ));
    house.client.launch(good.clone()).await.expect("launch");
    assert!(matches!(
        house.client.connect(&good.vm, 1024).await,
        Err(VmmError::Refused { reason: Refusal::NoListener, .. })
    ));
    house.client.kill(&good.vm).await.expect("kill");
}

#[tokio::test]
async fn strangers_on_the_sockets_disturb_nobody() {
    let house = House::open().await;
    tiny_image(&house, "spin", Code::new().spin());
    let (mut events, _) = house.subscribe().await;
    let machine = spec(1, "spin");
    house.client.launch(machine.clone()).await.expect("launch");
    let control = house.folder_of(&machine.vm).join(SOCKET);
    for socket in [house.folder.path().join("run/vmm.sock"), control.clone()] {
        let garbage = Wire::connect(&socket).expect("connect");
        garbage.send(&"no request", &[]).await.expect("send");
        let end = timeout(PATIENCE, garbage.receive::<MachineMessage>()).await.expect("it is closed");
        assert!(matches!(end, Err(WireError::Closed)), "{end:?}");
    }
    // More than the process takes: those over its bound are closed, the others wait.
    let crowd: Vec<Wire> = (0..20).map(|_| Wire::connect(&control).expect("connect")).collect();
    let last = crowd.last().expect("twenty");
    timeout(PATIENCE, last.closed()).await.expect("the last is closed");
    drop(crowd);
    let again = timeout(PATIENCE, present(&control, &machine)).await.expect("places become free");
    again.send(&MachineRequest::Kill, &[]).await.expect("send");
    assert_eq!(next_exit(&mut events, &machine).await, ExitReason::Killed);
}

/// A subscribed connection; tried again until the process has seen that others are gone.
async fn present(control: &Path, machine: &MachineSpec) -> Wire {
    loop {
        let wire = Wire::connect(control).expect("connect");
        if wire.send(&MachineRequest::Subscribe, &[]).await.is_ok()
            && let Ok((message, _)) = wire.receive::<MachineMessage>().await
        {
            assert!(matches!(message, MachineMessage::Running { vm, .. } if vm == machine.vm));
            return wire;
        }
    }
}
