//! Wakes through the supervisor as a program, past kills of it. vpc's end is a double.

mod house;

use feed::wire::{Wire, WireListener};
use house::{House, PATIENCE};
use model::id::VmId;
use tokio::time::timeout;
use vmm::client::{Events, VmmEvent};
use vpc::client::{VpcReply, VpcRequest};

async fn subscriber(listener: &WireListener) -> Wire {
    let wire = timeout(PATIENCE, listener.accept()).await.expect("in time").expect("accepted");
    let (request, _) = wire.receive::<VpcRequest>().await.expect("asked");
    assert_eq!(request, VpcRequest::Wakes);
    wire
}

async fn next(events: &mut Events) -> VmmEvent {
    timeout(PATIENCE, events.next()).await.expect("in time").expect("told")
}

#[tokio::test]
async fn a_wake_reaches_who_subscribes_later_and_outlives_a_kill_of_the_supervisor() {
    let mut house = House::open().await;
    let listener =
        WireListener::bind(&house.folder.path().join("run/vpc.sock"), 0o600).expect("vpc's socket");
    let vm = VmId::from_random([1; 20]);
    let (mut events, _) = house.subscribe().await;
    for _ in 0..2 {
        let wire = subscriber(&listener).await;
        wire.send(&VpcReply::Wake { vm: vm.clone() }, &[]).await.expect("told");
        assert_eq!(next(&mut events).await, VmmEvent::Wake { vm: vm.clone() });
        let (mut late, present) = house.subscribe().await;
        assert_eq!(present, []);
        assert_eq!(next(&mut late).await, VmmEvent::Wake { vm: vm.clone() }, "after what is present");
        house.restart();
        (events, _) = house.subscribe().await;
    }
}
