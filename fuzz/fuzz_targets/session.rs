//! Sessions: a hub with a server and a client takes forged frames between honest ones, in any order
//! and at any time. Nothing panics, and what it holds and sends for a frame is bounded.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use rma::session::{
    Client, ClientConfig, Hub, HubEvent, Request, Server, ServerConfig, ServerEvent,
};
use rma::wire::kind::{Role, Status};
use rma::wire::{
    ClusterName, Epoch, Flags, Guid, Header, Incarnation, IocNumber, IodNumber, Kind, Mac, Time,
};
use rma_fuzz::Forged;

#[derive(Debug, Arbitrary)]
enum Step {
    Forge(Forged),
    /// Frames that the hub has sent come back to it: it is its own peer.
    Echo {
        which: u8,
        keep: bool,
    },
    Submit {
        len: u16,
    },
    Wait {
        ms: u16,
    },
    Restart,
}

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const PEER: Mac = Mac([2, 0, 0, 0, 0, 2]);
/// Frames that one input may cause: a message of the largest size, and some control.
const MAX_FRAMES: usize = 4096;

fn server(cluster: ClusterName, incarnation: u64) -> Server {
    let config = ServerConfig {
        local: Guid(50),
        incarnation: Incarnation(incarnation),
        cluster: Some(cluster),
        service: true,
        mtu: 1500,
        credits: 16,
        max_connections: 4,
    };
    Server::new(config, incarnation)
}

fuzz_target!(|steps: Vec<Step>| {
    let cluster: ClusterName = "A".parse().expect("a name");
    let mut now = Time::from_nanos(1);
    let mut hub: Hub<u8> = Hub::new(true, vec![OURS]);
    hub.set_server(server(cluster, 1));
    let mut client = Client::new(
        ClientConfig {
            local: Guid(1),
            incarnation: Incarnation(1),
            role: Role::Host,
            cluster,
            session: 1,
            remote: Guid::NIL,
            ioc: IocNumber(1),
            service: true,
            mtu: 1500,
            credits: 16,
        },
        2,
    );
    client.connect(now, PEER);
    hub.insert(1, client);
    let mut sent: Vec<Vec<u8>> = Vec::new();
    let mut connections = Vec::new();
    for step in steps.iter().take(200) {
        match step {
            Step::Forge(forged) => {
                for frame in forged.frames(cluster, &connections) {
                    let _ = hub.handle(now, forged.source(), &frame);
                }
            }
            Step::Echo { which, keep } => {
                if !sent.is_empty() {
                    let which = usize::from(*which) % sent.len();
                    let frame = if *keep {
                        sent[which].clone()
                    } else {
                        sent.swap_remove(which)
                    };
                    let _ = hub.handle(now, PEER, &frame);
                }
            }
            Step::Submit { len } => {
                let client = hub.client_mut(&1).expect("it is there");
                let _ = client.submit(
                    now,
                    Request {
                        kind: Kind::Write,
                        flags: Flags::NONE,
                        iod: IodNumber(1),
                        epoch: Epoch(1),
                        body: vec![7; usize::from(*len)],
                        expect: 0,
                    },
                );
            }
            Step::Wait { ms } => {
                now = now + Duration::from_millis(u64::from(*ms));
                hub.tick(now);
            }
            Step::Restart => hub.set_server(server(cluster, now.as_nanos())),
        }
        while let Some(event) = hub.poll_event() {
            if let HubEvent::Server(ServerEvent::Request {
                connection,
                command,
                body,
                ..
            }) = event
            {
                let server = hub.server_mut().expect("it is there");
                server.reply(now, connection, command, Status::Ok, body);
            }
        }
        for n in 0.. {
            assert!(n < MAX_FRAMES, "one input makes it send for ever");
            let mut frame = Vec::new();
            let Some(_) = hub.poll_transmit(now, &mut frame) else {
                break;
            };
            let (header, _) = Header::parse(&frame, true).expect("what is sent is well-formed");
            let connection = (header.connection, header.ioc);
            if !connections.contains(&connection) && connections.len() < 64 {
                connections.push(connection);
            }
            if sent.len() < 256 {
                sent.push(frame);
            }
        }
        let server = hub.server().expect("it is there");
        assert!(server.connections().count() <= 4);
        if let Some(deadline) = hub.deadline() {
            assert!(deadline > Time::ZERO);
        }
    }
});
