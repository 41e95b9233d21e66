//! Packet sockets between the namespaces of the rig.

use rma_rig::TestResult;

rma_rig::test_main!(interfaces_are_listed_with_their_facts);

fn interfaces_are_listed_with_their_facts() -> TestResult {
    let rig = rma_rig::Rig::new()?;
    let options = rma_rig::NodeOptions::new(rma_rig::station(7)).mtu(9000);
    let node = rig.add_node("h7", options.nic(rma_rig::station(8)))?;
    let found = node.enter(rma::net::interfaces)?;
    let facts: Vec<_> = found
        .iter()
        .map(|i| (i.name.as_str(), i.mac, i.mtu, i.up))
        .collect();
    let expected = [
        ("eth0", rma_rig::station(7), 9000, true),
        ("eth1", rma_rig::station(8), 9000, true),
    ];
    assert_eq!(facts, expected);
    Ok(())
}
