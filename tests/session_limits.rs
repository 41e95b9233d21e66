//! Sessions against hostile frames, at their limits, and when identities change.

mod session_pair;

use std::time::Duration;

use proptest::prelude::*;
use rma::session::limits::{
    CONNECTION_TTL, HALF_OPEN_TTL, MAX_COMMANDS, MAX_QUEUED_BYTES, MAX_SESSION_BYTES, NOTIFY_TRIES,
    SESSION_TTL,
};
use rma::session::{
    Client, ClientConfig, ClientEvent, Hub, HubEvent, Request, Server, ServerConfig, ServerEvent,
    SubmitError,
};
use rma::wire::kind::{Event, Role};
use rma::wire::message::{ByteRange, ConnectRequest, IoRange, Missing};
use rma::wire::{
    CommandId, ConnectionId, DropReason, Epoch, Flags, Guid, Header, Incarnation, IocNumber,
    IodNumber, Kind, MAX_MESSAGE_BYTES, Mac, ObservationStamp, Status, Time, Wire,
};
use session_pair::{
    CLIENT, CLIENT_MAC, Faults, IOC, SERVER, SERVER_MAC, Workload, World, client_config,
    server_config,
};

const SECONDS: Duration = Duration::from_secs(1);

/// A client and a server that hand each other their frames without a segment.
struct Direct {
    now: Time,
    client: Client,
    server: Server,
    seen: Vec<ClientEvent>,
    served: Vec<ServerEvent>,
}

impl Direct {
    fn new() -> Self {
        Self::with(client_config(1, 1500, 8), server_config(1, 1500, 8))
    }

    fn with(client: ClientConfig, server: ServerConfig) -> Self {
        let mut direct = Self {
            now: Time::from_nanos(1 << 40),
            client: Client::new(client, 1),
            server: Server::new(server, 2),
            seen: Vec::new(),
            served: Vec::new(),
        };
        direct.client.connect(direct.now, SERVER_MAC);
        direct.run();
        direct
    }

    /// Lets both have their say until neither has one.
    fn run(&mut self) {
        let now = self.now;
        loop {
            let mut idle = true;
            let mut frame = Vec::new();
            if self.client.poll_transmit(now, &mut frame).is_some() {
                let (header, payload) = Header::parse(&frame, true).unwrap();
                let _ = self.server.handle(now, CLIENT_MAC, &header, payload);
                idle = false;
            }
            frame.clear();
            if self.server.poll_transmit(now, &mut frame).is_some() {
                let (header, payload) = Header::parse(&frame, true).unwrap();
                let _ = self.client.handle(now, SERVER_MAC, &header, payload);
                idle = false;
            }
            self.seen
                .extend(std::iter::from_fn(|| self.client.poll_event()));
            self.served
                .extend(std::iter::from_fn(|| self.server.poll_event()));
            if idle {
                break;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = [self.client.deadline(), self.server.deadline()]
            .into_iter()
            .flatten()
            .min()
            .filter(|t| *t <= end)
        {
            self.now = self.now.max(next);
            self.client.tick(self.now);
            self.server.tick(self.now);
            self.run();
        }
        self.now = end;
    }

    /// Gives the server a frame as its client would send it.
    fn hostile(&mut self, header: Header, payload: &[u8]) -> Result<(), DropReason> {
        let header = Header {
            ioc: IOC,
            cluster: "A".parse().unwrap(),
            connection: self.client.connection(),
            ..header
        };
        self.server.handle(self.now, CLIENT_MAC, &header, payload)
    }

    fn submit(&mut self, kind: Kind, body: Vec<u8>) -> CommandId {
        let id = self.client.submit(self.now, request(kind, body)).unwrap();
        self.run();
        id
    }

    /// The requests that the server handed out.
    fn requests(&mut self) -> Vec<(ConnectionId, CommandId, Vec<u8>)> {
        let mut out = Vec::new();
        self.served.retain(|event| match event {
            ServerEvent::Request {
                connection,
                command,
                body,
                ..
            } => {
                out.push((*connection, *command, body.clone()));
                false
            }
            _ => true,
        });
        out
    }

    fn drops(&mut self, header: Header, payload: &[u8]) -> DropReason {
        self.hostile(header, payload).unwrap_err()
    }
}

fn request(kind: Kind, body: Vec<u8>) -> Request {
    Request {
        kind,
        flags: Flags::NONE,
        iod: IodNumber(1),
        epoch: Epoch(0),
        body,
        expect: 0,
    }
}

/// A segment of a write whose initiator has no answer to any command yet.
fn segment(command: u64, offset: u32, len: u32) -> Header {
    Header {
        outstanding: command as u16 - 1,
        iod: IodNumber(1),
        command: CommandId(command),
        segment_offset: offset,
        message_len: len,
        ..Header::new(Kind::Write)
    }
}

#[test]
fn segments_that_contradict_each_other_are_dropped() {
    let mut d = Direct::new();
    d.hostile(segment(1, 0, 100), &[1; 50]).unwrap();
    let good = segment(1, 50, 100);
    for (header, payload) in [
        (segment(1, 50, 120), [1; 50]),
        (segment(1, 40, 100), [2; 50]),
        (
            Header {
                kind: Kind::WriteZeroes,
                ..good
            },
            [1; 50],
        ),
        (
            Header {
                epoch: Epoch(9),
                ..good
            },
            [1; 50],
        ),
        (
            Header {
                iod: IodNumber(2),
                ..good
            },
            [1; 50],
        ),
        (
            Header {
                flags: Flags::FUA,
                ..good
            },
            [1; 50],
        ),
    ] {
        assert_eq!(d.drops(header, &payload), DropReason::Inconsistent);
    }
    d.hostile(good, &[3; 50]).unwrap();
    d.run();
    let body = [[1; 50], [3; 50]].concat();
    assert_eq!(d.requests(), [(d.client.connection(), CommandId(1), body)]);
    // Another controller than the connection's.
    let header = Header {
        connection: d.client.connection(),
        cluster: "A".parse().unwrap(),
        ioc: IocNumber(2),
        ..segment(2, 0, 1)
    };
    let result = d.server.handle(d.now, CLIENT_MAC, &header, &[1]);
    assert_eq!(result, Err(DropReason::Inconsistent));
    let header = Header {
        ioc: IOC,
        cluster: "B".parse().unwrap(),
        ..header
    };
    let result = d.server.handle(d.now, CLIENT_MAC, &header, &[1]);
    assert_eq!(result, Err(DropReason::Cluster));
}

#[test]
fn commands_outside_of_the_window_are_dropped() {
    let mut d = Direct::new();
    assert_eq!(d.drops(segment(9, 0, 1), &[0]), DropReason::BeyondCredits);
    let far = Header {
        outstanding: 3,
        ..segment(20, 0, 1)
    };
    d.hostile(far, &[0]).unwrap();
    let header = Header {
        outstanding: 2,
        ..segment(16, 0, 1)
    };
    assert_eq!(d.drops(header, &[0]), DropReason::OldCommand);
    let header = Header {
        outstanding: 30,
        ..segment(20, 0, 1)
    };
    assert_eq!(d.drops(header, &[0]), DropReason::Inconsistent);
}

#[test]
fn commands_that_are_executed_are_bounded_even_when_the_floor_runs_away() {
    let mut d = Direct::new();
    let mut full = 0;
    for command in 1..1000 {
        let header = Header {
            outstanding: 0,
            ..segment(command, 0, 1)
        };
        full += u32::from(d.hostile(header, &[0]).is_err());
    }
    assert_eq!(full, 999 - 8);
    d.run();
    assert_eq!(d.requests().len(), 8);
}

#[test]
fn incomplete_requests_are_bounded() {
    let mut config = client_config(1, 1500, 4096);
    config.credits = 4096;
    let mut d = Direct::with(config, server_config(1, 1500, 4096));
    let mut reasons = Vec::new();
    for command in 1..100 {
        // The length is a promise that is never kept.
        let header = segment(
            command,
            MAX_MESSAGE_BYTES as u32 - 1,
            MAX_MESSAGE_BYTES as u32,
        );
        reasons.push(d.hostile(header, &[1]));
    }
    let taken = reasons.iter().filter(|r| r.is_ok()).count();
    assert_eq!(taken, MAX_SESSION_BYTES / (MAX_MESSAGE_BYTES + 4096));
    assert_eq!(reasons.last(), Some(&Err(DropReason::Full)));
    // What stands still gives way.
    d.now = d.now + 5 * SECONDS;
    assert_eq!(d.drops(segment(200, 0, 1 << 20), &[1]), DropReason::Full);
    d.hostile(segment(200, 0, 1 << 20), &[1]).unwrap();
}

#[test]
fn replies_that_nobody_takes_are_bounded() {
    let mut d = Direct::with(client_config(1, 1500, 4096), server_config(1, 1500, 4096));
    let range = IoRange::of_device(0, 1 << 20);
    let body = range.to_body();
    let mut taken = 0;
    for command in 1..200 {
        let header = Header {
            kind: Kind::Read,
            ..segment(command, 0, body.len() as u32)
        };
        taken += usize::from(d.hostile(header, &body).is_ok());
    }
    assert!(taken < MAX_SESSION_BYTES >> 20);
}

#[test]
fn an_oversized_reply_becomes_an_error() {
    let mut d = Direct::new();
    let id = d.submit(Kind::Identify, Vec::new());
    let (connection, command, _) = d.requests()[0].clone();
    let body = vec![0; MAX_MESSAGE_BYTES + 1];
    d.server.reply(d.now, connection, command, Status::Ok, body);
    d.run();
    let reply = ClientEvent::Reply {
        command: id,
        status: Status::Unsupported,
        body: Vec::new(),
    };
    assert_eq!(d.seen.pop(), Some(reply));
}

#[test]
fn a_clients_queue_is_bounded() {
    let mut client = Client::new(client_config(1, 1500, 8), 1);
    let now = Time::ZERO;
    let long = request(Kind::Write, vec![0; MAX_MESSAGE_BYTES + 1]);
    assert_eq!(client.submit(now, long), Err(SubmitError::TooLong));
    let no = request(Kind::Connect, Vec::new());
    assert_eq!(client.submit(now, no), Err(SubmitError::NotARequest));
    for _ in 0..MAX_QUEUED_BYTES >> 20 {
        client
            .submit(now, request(Kind::Write, vec![0; 1 << 20]))
            .unwrap();
    }
    let more = request(Kind::Write, vec![0]);
    assert_eq!(client.submit(now, more), Err(SubmitError::Full));
    let mut client = Client::new(client_config(1, 1500, 8), 1);
    for _ in 0..MAX_COMMANDS {
        client
            .submit(now, request(Kind::Flush, Vec::new()))
            .unwrap();
    }
    let more = request(Kind::Flush, Vec::new());
    assert_eq!(client.submit(now, more), Err(SubmitError::Full));
    client.close(now);
    let more = request(Kind::Flush, Vec::new());
    assert_eq!(client.submit(now, more), Err(SubmitError::Closed));
}

#[test]
fn a_cancelled_command_is_not_reported() {
    let mut d = Direct::new();
    let sent = d.submit(Kind::Flush, Vec::new());
    let waiting: Vec<_> = (0..10).map(|_| d.submit(Kind::Flush, Vec::new())).collect();
    assert!(d.client.cancel(sent) && !d.client.cancel(sent));
    assert!(d.client.cancel(waiting[9]));
    for _ in 0..3 {
        for (connection, command, _) in d.requests() {
            d.server
                .reply(d.now, connection, command, Status::Ok, Vec::new());
        }
        d.run();
    }
    let replied: Vec<_> = d
        .seen
        .iter()
        .filter_map(|e| match e {
            ClientEvent::Reply { command, .. } => Some(*command),
            _ => None,
        })
        .collect();
    assert_eq!(replied, waiting[..9]);
    assert_eq!(d.client.outstanding(), 0);
}

fn connect_of(initiator: u128, incarnation: u64, session: u64, attempt: u32) -> (Header, Vec<u8>) {
    let request = ConnectRequest {
        initiator: Guid(initiator),
        incarnation: Incarnation(incarnation),
        session,
        attempt,
        role: Role::Host,
        responder: Guid::NIL,
        features: 0,
        mtu: 1500,
        credits: 4,
    };
    let body = request.to_body();
    let header = Header {
        ioc: IOC,
        cluster: "A".parse().unwrap(),
        command: CommandId(1000 + u64::from(attempt)),
        message_len: body.len() as u32,
        ..Header::new(Kind::Connect)
    };
    (header, body)
}

#[test]
fn half_open_connections_are_bounded_and_expire() {
    let mut d = Direct::new();
    for initiator in 1..500 {
        let (header, body) = connect_of(0xbad_0000 + initiator, 1, 1, 1);
        d.server.handle(d.now, CLIENT_MAC, &header, &body).unwrap();
    }
    d.run();
    assert_eq!(d.server.connections().count(), 1, "only the used one shows");
    let id = d.submit(Kind::Flush, Vec::new());
    assert_eq!(d.requests()[0].1, id);
    d.pass(HALF_OPEN_TTL + SECONDS);
    assert!(!d.server.config().local.is_nil() && d.client.is_connected());
    assert!(
        d.served
            .iter()
            .all(|e| matches!(e, ServerEvent::Opened { .. }))
    );
}

#[test]
fn a_full_table_refuses_until_someone_leaves() {
    let mut config = server_config(1, 1500, 8);
    config.max_connections = 1;
    let mut d = Direct::with(client_config(1, 1500, 8), config);
    let (header, body) = connect_of(77, 1, 1, 1);
    d.server.handle(d.now, CLIENT_MAC, &header, &body).unwrap();
    let mut frame = Vec::new();
    d.server.poll_transmit(d.now, &mut frame).unwrap();
    let (answer, _) = Header::parse(&frame, true).unwrap();
    assert_eq!((answer.kind, answer.status), (Kind::Refused, Status::Busy));
    d.client.close(d.now);
    d.run();
    assert!(matches!(d.served.last(), Some(ServerEvent::Closed { .. })));
    d.server.handle(d.now, CLIENT_MAC, &header, &body).unwrap();
    assert!(d.server.poll_transmit(d.now, &mut Vec::new()).is_some());
}

#[test]
fn strangers_are_refused_by_name() {
    for (cluster, remote, status) in [
        ("B", SERVER, Status::WrongCluster),
        ("A", Guid(0x99), Status::WrongIdentity),
    ] {
        let config = ClientConfig {
            cluster: cluster.parse().unwrap(),
            remote,
            ..client_config(1, 1500, 8)
        };
        let mut d = Direct::with(config, server_config(1, 1500, 8));
        assert_eq!(d.seen, [ClientEvent::Refused(status)], "told once");
        d.pass(10 * SECONDS);
        assert_eq!(d.seen.len(), 1);
        // The cluster changes: in it comes by itself.
        d.server.set_cluster(Some("B".parse().unwrap()));
        d.pass(2 * SECONDS);
        assert_eq!(d.client.is_connected(), cluster == "B");
        d.server.set_cluster(Some("C".parse().unwrap()));
        assert_eq!(d.server.connections().count(), 0);
    }
}

#[test]
fn the_newer_incarnation_counts() {
    let mut d = Direct::new();
    let old = d.client.connection();
    let (header, body) = connect_of(CLIENT.0, 2, 1, 1);
    d.server.handle(d.now, CLIENT_MAC, &header, &body).unwrap();
    assert_eq!(
        d.server.poll_event(),
        Some(ServerEvent::Closed { connection: old })
    );
    d.submit(Kind::Flush, Vec::new());
    d.pass(5 * SECONDS);
    assert!(!d.client.is_connected(), "the older one stays out");
    assert!(d.requests().is_empty());
    let lost = [
        ClientEvent::Lost,
        ClientEvent::Refused(Status::UnknownConnection),
    ];
    assert!(d.seen.ends_with(&lost), "{:?}", d.seen);
}

#[test]
fn a_connect_from_the_past_changes_nothing() {
    let mut d = Direct::new();
    d.client.connect(d.now, Mac([2, 0, 0, 0, 7, 7]));
    d.run();
    let connection = d.client.connection();
    assert!(d.client.is_connected());
    for (session, attempt) in [(1, 1), (1, 2), (0, 9), (0, 1)] {
        let (header, body) = connect_of(CLIENT.0, 1, session, attempt);
        d.server.handle(d.now, CLIENT_MAC, &header, &body).unwrap();
        let mut frame = Vec::new();
        d.server.poll_transmit(d.now, &mut frame).unwrap();
        let (answer, _) = Header::parse(&frame, true).unwrap();
        assert_eq!(answer.kind, Kind::Refused);
        assert_eq!(answer.status, Status::UnknownConnection);
    }
    d.submit(Kind::Flush, Vec::new());
    assert_eq!(d.requests()[0].0, connection);
}

#[test]
fn a_session_number_that_is_taken_is_raised() {
    let mut d = Direct::new();
    d.submit(Kind::Flush, Vec::new());
    d.requests();
    // The same host makes a new client without knowing what the last one was called.
    d.client = Client::new(client_config(0, 1500, 8), 99);
    d.client.connect(d.now, SERVER_MAC);
    d.run();
    d.pass(SECONDS);
    assert!(!d.client.is_connected(), "the old command still runs");
    assert_eq!(d.seen.last(), Some(&ClientEvent::Refused(Status::NotReady)));
}

#[test]
fn a_new_session_waits_for_what_the_old_one_left_running() {
    for disconnect in [true, false] {
        let mut d = Direct::new();
        d.submit(Kind::Write, vec![1; 4000]);
        let (connection, command, _) = d.requests()[0].clone();
        if disconnect {
            d.client.close(d.now);
            d.run();
        }
        d.client = Client::new(client_config(2, 1500, 8), 99);
        d.client.connect(d.now, SERVER_MAC);
        d.submit(Kind::Write, vec![2; 4000]);
        d.pass(20 * SECONDS);
        assert!(d.requests().is_empty(), "would overtake");
        d.server
            .reply(d.now, connection, command, Status::Ok, Vec::new());
        d.pass(2 * SECONDS);
        assert_eq!(d.requests().len(), 1);
    }
}

#[test]
fn a_session_that_was_forgotten_starts_again() {
    let mut world = World::new(Faults::NONE, 4, 9000);
    let mut work = Workload::new(400, 6, 100_000, 4);
    for _ in 0..40 {
        work.drive(&mut world);
        world.step();
    }
    world.segment.lose = Some(|_, _| true);
    world.pass(SESSION_TTL + 20 * SECONDS);
    world.segment.lose = None;
    world.incarnation = 2; // what was not answered may be executed again
    work.run(&mut world, 20 * SECONDS);
    let fresh = |e: &&ClientEvent| matches!(e, ClientEvent::Connected { resumed: false, .. });
    let count = world.events.iter().filter(fresh).count();
    assert_eq!(count, 2, "{:?}", world.events);
}

#[test]
fn a_silent_connection_is_closed_but_its_session_goes_on() {
    let mut world = World::new(Faults::NONE, 4, 9000);
    world.disk.slowness = Duration::from_millis(1);
    let mut work = Workload::new(100, 6, 100_000, 4);
    for _ in 0..200 {
        work.drive(&mut world);
        world.step();
    }
    world.server_events.clear();
    world.segment.lose = Some(|_, _| true);
    world.pass(CONNECTION_TTL + 20 * SECONDS);
    assert!(matches!(
        world.server_events[..],
        [ServerEvent::Closed { .. }]
    ));
    assert_eq!(world.server.server().unwrap().connections().count(), 0);
    world.segment.lose = None;
    assert!(work.done < 100);
    work.run(&mut world, 20 * SECONDS);
    assert_eq!(world.server.server().unwrap().connections().count(), 1);
}

#[test]
fn a_client_without_a_past_takes_nobody_elses() {
    let mut d = Direct::new();
    for _ in 0..5 {
        d.submit(Kind::Flush, Vec::new());
        let (connection, command, _) = d.requests()[0].clone();
        d.server
            .reply(d.now, connection, command, Status::Ok, vec![9]);
        d.run();
    }
    // Another client of the same number, whose attempts have outrun the first one's.
    d.client = Client::new(client_config(1, 1500, 8), 99);
    for port in 0..4 {
        d.client.connect(d.now, Mac([2, 0, 0, 0, 7, port]));
    }
    d.client.connect(d.now, SERVER_MAC);
    d.run();
    d.seen.clear();
    let id = d.submit(Kind::Flush, Vec::new());
    d.pass(SECONDS);
    assert_eq!(
        d.requests().len(),
        1,
        "executed, not answered from the past"
    );
    assert!(
        !d.seen
            .iter()
            .any(|e| matches!(e, ClientEvent::Reply { command, .. } if *command == id))
    );
}

fn notes(world: &mut World) -> Vec<(Event, u64)> {
    let mut out = Vec::new();
    world.events.retain(|e| match e {
        ClientEvent::Notified(n) => {
            out.push((n.event, n.stamp.change));
            false
        }
        _ => true,
    });
    out
}

fn notify(world: &mut World, event: Event, change: u64) {
    let now = world.now;
    let server = world.server.server_mut().unwrap();
    let (connection, ..) = server.connections().next().unwrap();
    let stamp = ObservationStamp {
        incarnation: Incarnation(1),
        change,
    };
    server.notify(now, connection, event, IOC, stamp);
    world.pump();
}

#[test]
fn notifications_arrive_once_whatever_happens_to_frames() {
    for seed in 1..20 {
        let mut world = World::new(Faults::ALL, seed, 1500);
        world.segment.faults.loss = 0.3;
        world.until(10 * SECONDS, |w| {
            w.server.server().unwrap().connections().count() > 0
        });
        notify(&mut world, Event::DevicesChanged, 1);
        notify(&mut world, Event::RegistersChanged, 2);
        world.pass(10 * SECONDS);
        let mut seen = notes(&mut world);
        seen.sort_unstable();
        assert_eq!(
            seen,
            [(Event::DevicesChanged, 1), (Event::RegistersChanged, 2)],
            "seed {seed}"
        );
    }
}

#[test]
fn the_latest_notification_counts_and_nobody_is_told_for_ever() {
    let mut world = World::new(Faults::NONE, 1, 1500);
    world.pass(SECONDS);
    world.segment.lose = Some(|_, _| true);
    for change in 0..1000 {
        notify(&mut world, Event::DevicesChanged, change);
    }
    world.segment.lose = None;
    world.pass(SECONDS);
    assert_eq!(notes(&mut world), [(Event::DevicesChanged, 999)]);

    world.segment.lose = Some(|_, f| f.dst == SERVER_MAC);
    let before = world.segment.frames;
    notify(&mut world, Event::DevicesChanged, 1000);
    world.pass(4 * SECONDS);
    let sent = world.segment.frames - before;
    assert!(sent < 3 * u64::from(NOTIFY_TRIES), "{sent}");
    assert_eq!(notes(&mut world), [(Event::DevicesChanged, 1000)]);
}

#[test]
fn a_hub_of_many_clients_gives_each_its_own() {
    let mut hub: Hub<u32> = Hub::new(true, vec![CLIENT_MAC]);
    let now = Time::from_nanos(5);
    let mut servers: Vec<Server> = (0..100)
        .map(|n| {
            let local = Guid(1000 + n);
            let config = ServerConfig {
                local,
                ..server_config(1, 1500, 8)
            };
            Server::new(config, 7)
        })
        .collect();
    for n in 0..100_u8 {
        let config = ClientConfig {
            remote: Guid(1000 + u128::from(n)),
            ..client_config(1, 1500, 8)
        };
        hub.insert(n.into(), Client::new(config, 1));
        hub.client_mut(&n.into())
            .unwrap()
            .connect(now, Mac([2, 0, 0, 0, 9, n]));
        for _ in 0..5 {
            let client = hub.client_mut(&n.into()).unwrap();
            client
                .submit(now, request(Kind::Identify, vec![n]))
                .unwrap();
        }
    }
    let mut replies = 0;
    loop {
        let mut frame = Vec::new();
        let mut idle = true;
        if let Some(mac) = hub.poll_transmit(now, &mut frame) {
            let (header, payload) = Header::parse(&frame, true).unwrap();
            servers[usize::from(mac.0[5])]
                .handle(now, CLIENT_MAC, &header, payload)
                .unwrap();
            idle = false;
        }
        for (n, server) in servers.iter_mut().enumerate() {
            while let Some(event) = server.poll_event() {
                if let ServerEvent::Request {
                    connection,
                    command,
                    body,
                    ..
                } = event
                {
                    assert_eq!(body, [n as u8]);
                    server.reply(now, connection, command, Status::Ok, body);
                }
            }
            frame.clear();
            if server.poll_transmit(now, &mut frame).is_some() {
                hub.handle(now, Mac([2, 0, 0, 0, 9, n as u8]), &frame)
                    .unwrap();
                idle = false;
            }
        }
        while let Some(event) = hub.poll_event() {
            if let HubEvent::Client(key, ClientEvent::Reply { body, .. }) = event {
                assert_eq!(body, [key as u8]);
                replies += 1;
            }
        }
        if idle {
            break;
        }
    }
    assert_eq!(replies, 500);
    assert_eq!(hub.drops().total(), 0);
    assert_eq!(hub.keys().count(), 100);
    // A closed client still says good-bye.
    hub.client_mut(&3).unwrap().close(now);
    hub.remove(&3);
    let mut frame = Vec::new();
    assert_eq!(
        hub.poll_transmit(now, &mut frame),
        Some(Mac([2, 0, 0, 0, 9, 3]))
    );
    assert_eq!(
        Header::parse(&frame, true).unwrap().0.kind,
        Kind::Disconnect
    );
}

#[test]
fn bad_sources_and_strange_frames_are_counted() {
    let mut hub: Hub<u32> = Hub::new(false, vec![SERVER_MAC]);
    let now = Time::ZERO;
    let mut frame = Vec::new();
    Header::new(Kind::Discover).emit_whole(b"who", &mut frame);
    for (src, result) in [
        (SERVER_MAC, Err(DropReason::Source)),
        (Mac::BROADCAST, Err(DropReason::Source)),
        (CLIENT_MAC, Ok(())),
    ] {
        assert_eq!(hub.handle(now, src, &frame), result);
    }
    assert_eq!(hub.drops().get(DropReason::Source), 2);
    assert!(matches!(
        hub.poll_event(),
        Some(HubEvent::Connectionless { body, .. }) if body == b"who"
    ));
    assert_eq!(
        hub.handle(now, CLIENT_MAC, &[1, 2]),
        Err(DropReason::Truncated)
    );
    let mut flood = 0;
    for _ in 0..100_000 {
        flood += u32::from(hub.handle(now, CLIENT_MAC, &frame).is_ok());
    }
    assert!(flood < 5000);
}

fn any_header() -> impl Strategy<Value = Header> {
    let kinds = proptest::sample::select(Kind::ALL);
    let statuses = proptest::sample::select(Status::ALL);
    let numbers = (any::<u16>(), any::<u16>(), 0..20_u16, any::<bool>());
    let lengths = prop_oneof![
        Just((0_u32, 0_u32)),
        (0..3000_u32, 0..4000_u32),
        (any::<u32>(), 0..MAX_MESSAGE_BYTES as u32)
    ];
    (
        kinds,
        0_u16..8,
        statuses,
        numbers,
        lengths,
        0..40_u64,
        any::<bool>(),
    )
        .prop_map(
            |(
                kind,
                flags,
                status,
                (ioc, credits, outstanding, ours),
                (offset, len),
                command,
                wild,
            )| {
                let mut bits = Flags::NONE;
                for flag in [Flags::REPLY, Flags::FUA, Flags::RETRY] {
                    if flags & flag.bits() != 0 {
                        bits = bits.with(flag);
                    }
                }
                Header {
                    kind,
                    flags: bits,
                    status,
                    ioc: if ours { IOC } else { IocNumber(ioc) },
                    iod: IodNumber(1),
                    credits,
                    outstanding,
                    segment_offset: offset.min(len),
                    message_len: len,
                    command: CommandId(if wild {
                        command.wrapping_neg()
                    } else {
                        command
                    }),
                    cluster: "A".parse().unwrap(),
                    ..Header::new(kind)
                }
            },
        )
}

fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    let ranges = proptest::collection::vec((0..5000_u32, 1..5000_u32), 0..5).prop_map(|ranges| {
        let ranges = ranges
            .into_iter()
            .map(|(offset, len)| ByteRange { offset, len })
            .collect();
        Missing { ranges }.to_body()
    });
    let progress =
        (0..4_u8, ranges.clone()).prop_map(|(word, ranges)| [vec![word], ranges].concat());
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        ranges,
        progress,
        Just(connect_of(CLIENT.0, 1, 1, 2).1),
        Just(IoRange::of_device(0, 5000).to_body()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    /// Valid connection numbers in the worst hands: nothing panics, and time goes on.
    #[test]
    fn hostile_frames_never_panic(
        frames in proptest::collection::vec((any_header(), any_payload(), any::<bool>()), 1..80),
    ) {
        let mut world = World::new(Faults::NONE, 1, 1500);
        world.pass(Duration::from_millis(10));
        world.disk.slowness = Duration::from_millis(1);
        for (number, (mut header, mut payload, to_server)) in frames.into_iter().enumerate() {
            if number % 10 == 0 {
                world.write(number as u64, 0, &[7; 3000]);
                world.read(number as u64, 0, 3000);
                world.pump();
            }
            let now = world.now;
            header.connection = world.client.client(&1).unwrap().connection();
            payload.truncate((header.message_len - header.segment_offset) as usize);
            if payload.is_empty() {
                (header.message_len, header.segment_offset) = (0, 0);
            }
            let mut frame = Vec::new();
            header.emit(&payload, &mut frame);
            let _ = if to_server {
                world.server.handle(now, CLIENT_MAC, &frame)
            } else {
                world.client.handle(now, SERVER_MAC, &frame)
            };
            world.pump();
            world.pass(Duration::from_micros(50));
        }
        world.pass(Duration::from_millis(300));
    }

    /// Without the connection's number, frames change nothing.
    #[test]
    fn strangers_change_nothing(
        frames in proptest::collection::vec((any_header(), any_payload(), any::<bool>(), 0..3_u64), 1..60),
    ) {
        let mut world = World::new(Faults::NONE, 3, 1500);
        world.pass(Duration::from_millis(10));
        let mut work = Workload::new(20, 4, 20_000, 3);
        for (mut header, mut payload, to_server, connection) in frames {
            let now = world.now;
            header.connection = ConnectionId(connection);
            payload.truncate((header.message_len - header.segment_offset) as usize);
            if payload.is_empty() {
                (header.message_len, header.segment_offset) = (0, 0);
            }
            if header.kind == Kind::Connect {
                continue; // whoever knows a host's GUID can speak for it, until there are keys
            }
            let mut frame = Vec::new();
            header.emit(&payload, &mut frame);
            let _ = if to_server {
                world.server.handle(now, CLIENT_MAC, &frame)
            } else {
                world.client.handle(now, SERVER_MAC, &frame)
            };
            work.drive(&mut world);
            world.step();
        }
        work.run(&mut world, SECONDS);
        let connected = |e: &&ClientEvent| matches!(e, ClientEvent::Connected { .. });
        prop_assert_eq!(world.events.iter().filter(connected).count(), 1);
    }
}

#[test]
fn an_answer_for_another_device_or_the_second_to_come_is_dropped() {
    let mut world = World::new(Faults::NONE, 3, 1500);
    world.until(Duration::from_secs(1), |w| w.connected());
    world.segment.record = Some(Vec::new());
    world.segment.lose = Some(|_, frame| frame.dst == CLIENT_MAC);
    let id = world.read(1, 0, 512);
    world.pass(Duration::from_micros(200));
    world.segment.lose = None;
    let record = world.segment.record.take().unwrap();
    let reply = record.into_iter().find_map(|frame| {
        let (header, payload) = Header::parse(&frame.bytes, true).ok()?;
        (header.kind == Kind::Read && header.is_reply()).then(|| (header, payload.to_vec()))
    });
    let (header, payload) = reply.expect("the answer that was lost");
    let mut deliver = |header: Header| {
        let mut bytes = Vec::new();
        header.emit(&payload, &mut bytes);
        world.client.handle(world.now, SERVER_MAC, &bytes)
    };
    let of_another = Header {
        iod: IodNumber(header.iod.0 + 1),
        ..header
    };
    assert_eq!(deliver(of_another), Err(DropReason::Inconsistent));
    assert_eq!(deliver(header), Ok(()));
    assert_eq!(deliver(header), Err(DropReason::OldCommand));
    assert_eq!(world.reply(id), (Status::Ok, vec![0; 512]));
}
