//! What a 4 KiB read costs in sessions alone: both hubs, no wire, no disk.

#![allow(missing_docs)] // the macros make functions without any

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rma::session::{
    Client, ClientConfig, ClientEvent, Hub, HubEvent, Request, Server, ServerConfig, ServerEvent,
};
use rma::wire::kind::Role;
use rma::wire::message::IoRange;
use rma::wire::{
    Epoch, Flags, Guid, Incarnation, IocNumber, IodNumber, Kind, Mac, Status, Time, Wire,
};

const CLIENT: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const DEPTH: usize = 32;

struct Pair {
    now: u64,
    client: Hub<u32>,
    server: Hub<u32>,
    frame: Vec<u8>,
    len: usize,
}

impl Pair {
    fn new(mtu: u16, len: usize) -> Self {
        let cluster = "A".parse().expect("a name");
        let config = ClientConfig {
            local: Guid(1),
            incarnation: Incarnation(1),
            role: Role::Host,
            cluster,
            session: 1,
            remote: Guid(2),
            ioc: IocNumber(1),
            service: true,
            mtu,
            credits: 256,
        };
        let mut client = Hub::new(true, vec![CLIENT]);
        client.insert(1, Client::new(config, 1));
        let config = ServerConfig {
            local: Guid(2),
            incarnation: Incarnation(1),
            cluster: Some(cluster),
            service: true,
            mtu,
            credits: 256,
            max_connections: 8,
        };
        let mut server = Hub::new(true, vec![SERVER]);
        server.set_server(Server::new(config, 1));
        let mut pair = Self {
            now: 1 << 40,
            client,
            server,
            frame: Vec::new(),
            len,
        };
        let now = pair.now();
        pair.client
            .client_mut(&1)
            .expect("is there")
            .connect(now, SERVER);
        pair.pump();
        pair
    }

    fn now(&self) -> Time {
        Time::from_nanos(self.now)
    }

    /// Moves frames until nobody has any; returns how many replies have come.
    fn pump(&mut self) -> usize {
        let now = self.now();
        let mut replies = 0;
        loop {
            let mut idle = true;
            self.frame.clear();
            while self.client.poll_transmit(now, &mut self.frame).is_some() {
                let _ = self.server.handle(now, CLIENT, &self.frame);
                self.frame.clear();
                idle = false;
            }
            while let Some(event) = self.server.poll_event() {
                if let HubEvent::Server(ServerEvent::Request {
                    connection,
                    command,
                    ..
                }) = event
                {
                    let body = vec![7; self.len];
                    let server = self.server.server_mut().expect("is there");
                    server.reply(now, connection, command, Status::Ok, body);
                }
            }
            while self.server.poll_transmit(now, &mut self.frame).is_some() {
                let _ = self.client.handle(now, SERVER, &self.frame);
                self.frame.clear();
                idle = false;
            }
            while let Some(event) = self.client.poll_event() {
                replies += usize::from(matches!(
                    event,
                    HubEvent::Client(_, ClientEvent::Reply { .. })
                ));
            }
            if idle {
                return replies;
            }
        }
    }

    /// A full queue of reads.
    fn reads(&mut self) {
        self.now += 100_000;
        let now = self.now();
        for n in 0..DEPTH {
            let range = IoRange::of_device((n * self.len) as u64, self.len as u64);
            let request = Request {
                kind: Kind::Read,
                flags: Flags::NONE,
                iod: IodNumber(1),
                epoch: Epoch(1),
                body: range.to_body(),
                expect: self.len,
            };
            let client = self.client.client_mut(&1).expect("is there");
            client.submit(now, request).expect("has room");
        }
        assert_eq!(self.pump(), DEPTH);
    }
}

fn session(c: &mut Criterion) {
    for (mtu, len) in [(9000, 4096), (1500, 4096), (9000, 131_072), (1500, 131_072)] {
        let mut group = c.benchmark_group(format!("{DEPTH} reads of {len} bytes at MTU {mtu}"));
        group.throughput(Throughput::Elements(DEPTH as u64));
        let mut pair = Pair::new(mtu, len);
        group.bench_function("both ends", |b| b.iter(|| pair.reads()));
    }
}

criterion_group!(benches, session);
criterion_main!(benches);
