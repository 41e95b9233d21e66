//! Properties of the codec over generated values and hostile bytes.

mod wire_model;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use rma::wire::kind::{Event, Progress, Role};
use rma::wire::message::*;
use rma::wire::row::{MAX_MACS, MAX_OWNERS};
use rma::wire::*;
use wire_model::samples;

fn guid() -> impl Strategy<Value = Guid> + Clone {
    prop_oneof![Just(1), Just(u128::MAX), 1..u128::MAX].prop_map(Guid)
}

fn any_guid() -> impl Strategy<Value = Guid> {
    prop_oneof![Just(Guid::NIL), guid()]
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), Just(u64::MAX), any::<u64>()]
}

/// Any value of a code table.
fn code<T: Copy + std::fmt::Debug + 'static>(all: &'static [T]) -> impl Strategy<Value = T> {
    proptest::sample::select(all)
}

fn mac() -> impl Strategy<Value = Mac> {
    any::<[u8; 6]>().prop_map(|[first, rest @ .., last]| {
        let [b, c, d, e] = rest;
        Mac([first & !1, b, c, d, e, last | 1])
    })
}

fn macs() -> BoxedStrategy<Vec<Mac>> {
    btree_set(mac(), 1..=MAX_MACS)
        .prop_map(|set| set.into_iter().rev().collect())
        .boxed()
}

fn cluster() -> impl Strategy<Value = ClusterName> {
    prop_oneof![
        Just(ClusterName::NONE),
        "[A-Za-z0-9._-]{1,16}".prop_map(|s| s.parse().expect("a name")),
    ]
}

fn named_cluster() -> impl Strategy<Value = ClusterName> {
    "[A-Za-z0-9._-]{1,16}".prop_map(|s| s.parse().expect("a name"))
}

fn placement() -> impl Strategy<Value = Placement> {
    let guests = btree_set(named_cluster(), 0..=MAX_GUESTS);
    (cluster(), number(), guests).prop_map(|(home, assignment, guests)| Placement {
        home,
        assignment,
        guests: guests.into_iter().filter(|guest| *guest != home).collect(),
    })
}

/// At most 63 bytes of any characters.
fn text() -> BoxedStrategy<String> {
    prop_oneof![".{0,15}", "[\\x00-\\x7f]{0,63}", "\u{10ffff}{0,15}"].boxed()
}

fn observed() -> BoxedStrategy<ObservationStamp> {
    (number(), number())
        .prop_map(|(incarnation, change)| ObservationStamp {
            incarnation: Incarnation(incarnation),
            change,
        })
        .boxed()
}

fn ownership() -> BoxedStrategy<Ownership> {
    prop_oneof![
        Just(Ownership::Unallocated),
        guid().prop_map(Ownership::Dedicated),
        vec(guid(), 1..6).prop_map(|v| Ownership::shared(v).expect("few")),
        vec(guid(), MAX_OWNERS).prop_map(|v| Ownership::shared(v).expect("few enough")),
    ]
    .boxed()
}

fn owned() -> BoxedStrategy<OwnershipStamp> {
    (number(), number(), any_guid())
        .prop_map(|(epoch, term, writer)| OwnershipStamp {
            epoch: Epoch(epoch),
            term,
            writer,
        })
        .boxed()
}

fn stamp() -> BoxedStrategy<TableStamp> {
    (number(), number(), any_guid())
        .prop_map(|(term, counter, writer)| TableStamp {
            term,
            counter,
            writer,
        })
        .boxed()
}

fn settings() -> BoxedStrategy<Settings> {
    (code(Granularity::ALL), stamp())
        .prop_map(|(granularity, stamp)| Settings { granularity, stamp })
        .boxed()
}

fn holder() -> BoxedStrategy<Holder> {
    let numbers = (number(), any::<u32>(), code(Purpose::ALL));
    (guid(), numbers, text(), text())
        .prop_map(|(host, (term, process, purpose), name, user)| Holder {
            term: term.max(1),
            host,
            purpose,
            process,
            name,
            user,
        })
        .boxed()
}

fn summary() -> BoxedStrategy<TableSummary> {
    (stamp(), any::<u128>(), any::<u32>(), stamp())
        .prop_map(|(stamp, digest, row_count, floor)| TableSummary {
            stamp,
            digest,
            row_count,
            floor,
        })
        .boxed()
}

fn parts(deepest: u8) -> BoxedStrategy<Parts> {
    (0..=deepest)
        .prop_flat_map(|level| {
            let last = ((1_u32 << (4 * level)) - 1) as u16;
            (
                Just(level),
                btree_set(0..=last, 1..=8.min(usize::from(last) + 1)),
            )
        })
        .prop_map(|(level, numbers)| Parts {
            level,
            numbers: numbers.into_iter().collect(),
        })
        .boxed()
}

fn extent() -> BoxedStrategy<Option<Extent>> {
    prop_oneof![
        Just(None),
        (number(), number()).prop_map(|(offset, len)| {
            let len = len.min(u64::MAX - offset);
            (len > 0).then_some(Extent { offset, len })
        }),
    ]
    .boxed()
}

fn block_size() -> impl Strategy<Value = u32> {
    (9_u32..=16).prop_map(|shift| 1 << shift)
}

prop_compose! {
    fn row()(
        guid in guid(),
        (entity, state) in (code(EntityType::ALL), code(RowState::ALL)),
        macs in prop_oneof![Just(vec![]), macs()],
        (ioc, iod, extent, parent) in (any::<u16>(), any::<u16>(), extent(), any_guid()),
        (name, vendor, model, serial) in (text(), text(), text(), text()),
        (size_bytes, block_size) in (number(), prop_oneof![Just(0), block_size()]),
        (features, mode) in (number(), any::<u8>()),
        (observed, ownership, owned) in (observed(), ownership(), owned()),
    ) -> Row {
        Row {
            guid, entity, state, macs, ioc: IocNumber(ioc), iod: IodNumber(iod), extent, parent,
            name, vendor, model, serial, size_bytes, block_size, features, mode, observed,
            ownership, owned,
        }
    }
}

/// Rows by ascending GUID.
fn rows(least: usize) -> impl Strategy<Value = Vec<Row>> {
    vec(row().boxed(), least..5).prop_map(|mut rows| {
        rows.sort_by_key(|r| r.guid);
        rows.dedup_by_key(|r| r.guid);
        rows
    })
}

prop_compose! {
    fn member()(
        guid in guid(),
        entity in prop_oneof![Just(EntityType::Host), Just(EntityType::Unit)],
        (macs, name, observed, ownership) in (macs(), text(), observed(), ownership()),
        (epoch, version, guest) in (number(), number(), any::<bool>()),
    ) -> Member {
        let guest = guest && entity == EntityType::Unit;
        Member { guid, entity, macs, name, observed, ownership, epoch: Epoch(epoch), version, guest }
    }
}

prop_compose! {
    fn device()(
        (guid, iod) in (guid(), 1..=u16::MAX),
        (name, vendor, model, serial) in (text(), text(), text(), text()),
        (size_bytes, block_size) in (number(), block_size()),
        (features, observed) in (number(), observed()),
    ) -> DeviceRecord {
        DeviceRecord {
            guid, iod: IodNumber(iod), name, vendor, model, serial, size_bytes, block_size,
            features, observed,
        }
    }
}

fn register() -> BoxedStrategy<OwnershipRegister> {
    (guid(), ownership(), owned(), facts())
        .prop_map(|(row, ownership, owned, extent)| OwnershipRegister {
            row,
            extent: extent.filter(|facts| may_be(facts, row, &ownership)),
            ownership,
            owned,
        })
        .boxed()
}

fn facts() -> BoxedStrategy<Option<ExtentFacts>> {
    (guid(), extent(), text(), any::<bool>())
        .prop_map(|(device, range, name, present)| {
            Some(ExtentFacts {
                device,
                range: range?,
                name,
                present,
            })
        })
        .boxed()
}

/// Whether an extent's register or change may say that.
fn may_be(facts: &ExtentFacts, row: Guid, ownership: &Ownership) -> bool {
    facts.device != row && (facts.present || *ownership == Ownership::Unallocated)
}

fn ranges() -> BoxedStrategy<Missing> {
    btree_set(0..=MAX_MESSAGE_BYTES as u32, 0..=2 * MAX_RANGES)
        .prop_map(|ends| {
            let ends: Vec<u32> = ends.into_iter().collect();
            let ranges = ends.chunks_exact(2).map(|pair| ByteRange {
                offset: pair[0],
                len: pair[1] - pair[0],
            });
            Missing {
                ranges: ranges.collect(),
            }
        })
        .boxed()
}

fn link() -> impl Strategy<Value = (u64, u16, u16)> {
    (number(), MIN_MTU..=u16::MAX, 1..=u16::MAX)
}

/// A header's kind, direction and status with a body that belongs to it.
fn message() -> BoxedStrategy<(Header, Body<'static>)> {
    let request = |kind| Header::new(kind);
    let reply = |kind| Header {
        flags: Flags::REPLY,
        ..Header::new(kind)
    };
    let sessions = prop_oneof![
        (
            (guid(), number(), number()),
            any::<u32>(),
            (code(Role::ALL), any_guid(), link())
        )
            .prop_map(
                move |((initiator, incarnation, session), attempt, (role, responder, l))| {
                    let (features, mtu, credits) = l;
                    let incarnation = Incarnation(incarnation);
                    let body = ConnectRequest {
                        initiator,
                        incarnation,
                        session,
                        attempt,
                        role,
                        responder,
                        features,
                        mtu,
                        credits,
                    };
                    (request(Kind::Connect), Body::ConnectRequest(body))
                }
            ),
        (guid(), number(), link(), any::<bool>()).prop_map(
            move |(responder, incarnation, (features, mtu, credits), resumed)| {
                let incarnation = Incarnation(incarnation);
                let body = ConnectReply {
                    responder,
                    incarnation,
                    features,
                    mtu,
                    credits,
                    resumed,
                };
                (reply(Kind::Connect), Body::ConnectReply(body))
            }
        ),
        ranges().prop_map(move |m| (request(Kind::Probe), Body::Missing(m))),
        (code(Progress::ALL), ranges()).prop_map(move |(progress, missing)| {
            let body = ProgressReport { progress, missing };
            (request(Kind::Progress), Body::ProgressReport(body))
        }),
        (
            any::<bool>(),
            any::<u32>(),
            MIN_MTU..=u16::MAX,
            0..10_000_u16
        )
            .prop_map(move |(is_reply, number, mtu, padding)| {
                let header = if is_reply { reply } else { request };
                let body = PathProbe {
                    number,
                    mtu,
                    padding,
                };
                (header(Kind::Path), Body::PathProbe(body))
            }),
        (number(), code(Event::ALL), any::<u16>(), observed()).prop_map(
            move |(number, event, ioc, stamp)| {
                let ioc = IocNumber(ioc);
                let body = Notification {
                    number,
                    event,
                    ioc,
                    stamp,
                };
                (request(Kind::Notify), Body::Notification(body))
            }
        ),
        code(Kind::ALL).prop_map(move |kind| {
            let refused = Header {
                status: Status::Busy,
                ..reply(kind)
            };
            let kinds = [Kind::Probe, Kind::Progress, Kind::Notify, Kind::NotifyAck];
            if kinds.contains(&kind) {
                (request(Kind::KeepAlive), Body::Empty)
            } else {
                (refused, Body::Empty)
            }
        }),
    ]
    .boxed();
    let fabric = prop_oneof![
        (guid(), code(Role::ALL)).prop_map(move |(asker, role)| {
            (
                request(Kind::Discover),
                Body::Discover(Discover { asker, role }),
            )
        }),
        (guid(), number()).prop_map(move |(fabric, incarnation)| {
            let incarnation = Incarnation(incarnation);
            (
                request(Kind::Here),
                Body::Here(Here {
                    fabric,
                    incarnation,
                }),
            )
        }),
        (member().boxed(), cluster(), placement()).prop_map(move |(m, cluster, placement)| {
            let Member {
                guid,
                entity,
                macs,
                name,
                observed,
                ..
            } = m;
            let body = Register {
                guid,
                entity,
                macs,
                name,
                observed,
                cluster,
                placement: if entity == EntityType::Unit {
                    placement
                } else {
                    Placement::default()
                },
            };
            (request(Kind::Register), Body::Register(body))
        }),
        (cluster(), number(), number()).prop_map(move |(cluster, version, assignment)| {
            let body = Registered {
                cluster,
                version,
                assignment,
            };
            (reply(Kind::Register), Body::Registered(body))
        }),
        (named_cluster(), text()).prop_map(move |(cluster, host)| {
            let host = if host.is_empty() { "h".into() } else { host };
            let body = FindHost { cluster, host };
            (request(Kind::FindHost), Body::FindHost(body))
        }),
        guid().prop_map(move |host| (reply(Kind::FindHost), Body::FoundHost(FoundHost { host }))),
        prop::collection::btree_set(guid(), 1..5).prop_map(move |rows| {
            let rows = rows.into_iter().collect();
            (
                request(Kind::InUse),
                Body::InUseRequest(InUseRequest { rows }),
            )
        }),
        (any_guid(), text()).prop_map(move |(row, users)| {
            let users = Users(users);
            (
                reply(Kind::InUse),
                Body::InUseReply(InUseReply { row, users }),
            )
        }),
        (number(), any_guid()).prop_map(move |(known_version, after)| {
            let body = MembershipRequest {
                known_version,
                after,
            };
            (request(Kind::Membership), Body::MembershipRequest(body))
        }),
        (
            number(),
            btree_map(guid(), member().boxed(), 0..5),
            any::<bool>()
        )
            .prop_map(move |(version, members, flag)| {
                let members: Vec<_> = members
                    .into_iter()
                    .map(|(guid, m)| Member { guid, ..m })
                    .collect();
                let body = MembershipReply {
                    version,
                    unchanged: flag && members.is_empty(),
                    more: flag && !members.is_empty(),
                    members,
                };
                (reply(Kind::Membership), Body::MembershipReply(body))
            }),
        (guid(), ownership(), number()).prop_map(move |(unit, ownership, epoch)| {
            let body = UnitOwnership {
                unit,
                ownership,
                epoch: Epoch(epoch),
            };
            (request(Kind::UnitOwnership), Body::UnitOwnership(body))
        }),
    ]
    .boxed();
    let tables = prop_oneof![
        summary().prop_map(move |m| (request(Kind::TableStamp), Body::TableSummary(m))),
        summary().prop_map(move |m| (reply(Kind::TableStamp), Body::TableSummary(m))),
        (any_guid(), parts(4)).prop_map(move |(after, parts)| {
            let body = TableRowsRequest { after, parts };
            (request(Kind::TableRows), Body::TableRowsRequest(body))
        }),
        (parts(3), 1..=2_u8).prop_map(move |(parts, depth)| {
            let depth = depth.min(4 - parts.level);
            let body = TableDigestsRequest { parts, depth };
            (request(Kind::TableDigests), Body::TableDigestsRequest(body))
        }),
        (summary(), settings(), vec(any::<u64>(), 0..300)).prop_map(
            move |(summary, settings, digests)| {
                let body = TableDigestsReply {
                    summary,
                    settings,
                    digests,
                };
                (reply(Kind::TableDigests), Body::TableDigestsReply(body))
            }
        ),
        (summary(), settings(), any::<bool>(), rows(1)).prop_map(
            move |(summary, settings, more, rows)| {
                let body = TableRowsReply {
                    summary,
                    settings,
                    more,
                    rows,
                };
                (reply(Kind::TableRows), Body::TableRowsReply(body))
            }
        ),
        (summary(), settings(), rows(0)).prop_map(move |(summary, settings, mut rows)| {
            rows.reverse();
            let body = Offer {
                summary,
                settings,
                rows,
            };
            (request(Kind::Offer), Body::Offer(body))
        }),
        (
            (summary(), settings(), rows(0)),
            (any::<u128>(), any::<u32>(), any::<bool>(), parts(4))
        )
            .prop_map(
                move |((summary, settings, rows), (base, piece, more, parts))| {
                    let body = Deposit {
                        summary,
                        settings,
                        base,
                        piece,
                        more,
                        parts,
                        rows,
                    };
                    (request(Kind::Deposit), Body::Deposit(body))
                }
            ),
    ]
    .boxed();
    let leases = prop_oneof![
        (code(LeaseVerb::ALL), any::<bool>(), holder()).prop_map(move |(verb, force, holder)| {
            let term = match verb {
                LeaseVerb::Query => 0,
                _ => holder.term,
            };
            let body = LeaseRequest {
                verb,
                force: force && verb == LeaseVerb::Ask,
                holder: Holder { term, ..holder },
            };
            (request(Kind::Lease), Body::LeaseRequest(body))
        }),
        (
            any::<bool>(),
            number(),
            settings(),
            number(),
            number(),
            proptest::option::of(holder())
        )
            .prop_map(
                move |(granted, promised, settings, held_ms, left_ms, holder)| {
                    let body = LeaseReply {
                        granted: granted && holder.is_some(),
                        promised: promised.max(holder.as_ref().map_or(0, |h| h.term)),
                        settings,
                        held_ms,
                        left_ms,
                        holder,
                    };
                    (reply(Kind::Lease), Body::LeaseReply(body))
                }
            ),
        settings().prop_map(move |m| (request(Kind::Settle), Body::Settings(m))),
        settings().prop_map(move |m| (reply(Kind::Settle), Body::Settings(m))),
    ]
    .boxed();
    let controllers = btree_map(guid(), (text(), text(), observed()), 0..5);
    let units = prop_oneof![
        (
            guid(),
            (text(), text(), text(), text()),
            macs(),
            observed(),
            observed(),
            controllers
        )
            .prop_map(move |(unit, texts, macs, observed, listed, controllers)| {
                let (name, vendor, model, serial) = texts;
                let controllers = controllers
                    .into_iter()
                    .zip(1..)
                    .map(|((guid, (name, model, observed)), n)| ControllerRecord {
                        guid,
                        ioc: IocNumber(n * 1000),
                        name,
                        model,
                        observed,
                    })
                    .collect();
                let body = ControllersReply {
                    unit,
                    name,
                    vendor,
                    model,
                    serial,
                    macs,
                    observed,
                    listed,
                    controllers,
                };
                (reply(Kind::Controllers), Body::ControllersReply(body))
            }),
        any_guid().prop_map(move |after| {
            let body = RegistersRequest { after };
            (request(Kind::Registers), Body::RegistersRequest(body))
        }),
        (any::<bool>(), btree_map(guid(), register(), 1..5)).prop_map(move |(more, registers)| {
            let registers = registers
                .into_iter()
                .map(|(row, r)| OwnershipRegister {
                    row,
                    extent: r.extent.filter(|facts| facts.device != row),
                    ..r
                })
                .collect();
            let body = RegistersReply { more, registers };
            (reply(Kind::Registers), Body::RegistersReply(body))
        }),
        (number(), btree_map(guid(), register(), 1..4)).prop_map(move |(term, registers)| {
            let registers: Vec<_> = registers
                .into_iter()
                .map(|(row, r)| OwnershipRegister {
                    row,
                    extent: r.extent.filter(|facts| facts.device != row),
                    ..r
                })
                .collect();
            let body = Restore {
                term,
                after: Guid(registers[0].row.0 - 1),
                more: registers.len() > 1,
                registers,
            };
            (request(Kind::Restore), Body::Restore(body))
        }),
        (
            number(),
            guid(),
            btree_map(guid(), (0..u64::MAX, ownership(), facts()), 1..5)
        )
            .prop_map(move |(term, writer, changes)| {
                let changes = changes
                    .into_iter()
                    .map(|(row, (expected, ownership, extent))| Change {
                        row,
                        expected: Epoch(expected),
                        extent: extent.filter(|facts| may_be(facts, row, &ownership)),
                        ownership,
                    })
                    .rev()
                    .collect();
                let body = CompareAndSet {
                    term,
                    writer,
                    changes,
                };
                (request(Kind::CompareAndSet), Body::CompareAndSet(body))
            }),
        (
            (number(), guid(), guid(), 0..u64::MAX - 1),
            (named_cluster(), guid(), any::<bool>())
        )
            .prop_map(
                move |((term, writer, row, expected), (to, owner, recursive))| {
                    let body = Move {
                        term,
                        writer,
                        row,
                        expected: Epoch(expected),
                        to,
                        owner,
                        recursive,
                    };
                    (request(Kind::Move), Body::Move(body))
                }
            ),
        (register(), any::<bool>()).prop_map(move |(register, is_done)| {
            if is_done {
                let body = RegistersReply {
                    more: false,
                    registers: vec![register],
                };
                return (reply(Kind::Move), Body::RegistersReply(body));
            }
            let header = Header {
                status: Status::Elsewhere,
                ..reply(Kind::Move)
            };
            (header, Body::Conflict(Conflict { register }))
        }),
        register().prop_map(move |register| {
            let status = Status::Conflict;
            let header = Header {
                status,
                ..reply(Kind::CompareAndSet)
            };
            (header, Body::Conflict(Conflict { register }))
        }),
        (
            guid(),
            observed(),
            btree_map(guid(), device().boxed(), 0..5)
        )
            .prop_map(move |(controller, listed, devices)| {
                let devices = devices
                    .into_iter()
                    .zip(1..)
                    .map(|((guid, d), n)| DeviceRecord {
                        guid,
                        iod: IodNumber(n),
                        ..d
                    })
                    .collect();
                let body = DevicesReply {
                    controller,
                    listed,
                    devices,
                };
                (reply(Kind::Devices), Body::DevicesReply(body))
            }),
        (device().boxed(), register()).prop_map(move |(device, register)| {
            let body = IdentifyReply { device, register };
            (reply(Kind::Identify), Body::IdentifyReply(body))
        }),
        (any_guid(), number(), number()).prop_map(move |(extent, offset, len)| {
            let range = IoRange {
                extent,
                offset,
                len,
            };
            (request(Kind::Discard), Body::IoRange(range))
        }),
        any_guid().prop_map(move |extent| {
            let range = IoRange {
                extent,
                ..IoRange::of_device(0, 0)
            };
            (request(Kind::Flush), Body::IoRange(range))
        }),
        (any_guid(), number()).prop_map(move |(extent, offset)| {
            let range = IoRange {
                extent,
                offset,
                len: 4,
            };
            (request(Kind::Write), Body::Write(range, b"data"))
        }),
    ]
    .boxed();
    prop_oneof![sessions, fabric, tables, leases, units].boxed()
}

/// What is done to bytes on their way.
#[derive(Debug, Clone)]
enum Damage {
    Set(usize, u8),
    Flip(usize, u8),
    Remove(usize),
    Insert(usize, u8),
    Cut(usize),
    Repeat(usize, usize),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let at = any::<u16>().prop_map(usize::from);
    let one = prop_oneof![
        (
            at.clone(),
            prop_oneof![Just(0), Just(1), Just(255), any::<u8>()]
        )
            .prop_map(|(i, b)| Damage::Set(i, b)),
        (at.clone(), 0_u8..8).prop_map(|(i, b)| Damage::Flip(i, b)),
        at.clone().prop_map(Damage::Remove),
        (at.clone(), any::<u8>()).prop_map(|(i, b)| Damage::Insert(i, b)),
        at.clone().prop_map(Damage::Cut),
        (at, 0_usize..64).prop_map(|(i, n)| Damage::Repeat(i, n)),
    ];
    vec(one, 1..4)
}

fn apply(damages: &[Damage], bytes: &mut Vec<u8>) {
    for damage in damages {
        if bytes.is_empty() {
            bytes.push(0);
        }
        let len = bytes.len();
        match *damage {
            Damage::Set(i, b) => bytes[i % len] = b,
            Damage::Flip(i, b) => bytes[i % len] ^= 1 << b,
            Damage::Remove(i) => drop(bytes.remove(i % len)),
            Damage::Insert(i, b) => bytes.insert(i % len, b),
            Damage::Cut(i) => bytes.truncate(i % len),
            Damage::Repeat(i, n) => {
                let part = bytes[i % len..len.min(i % len + n)].to_vec();
                bytes.splice(i % len..i % len, part);
            }
        }
    }
}

/// Whatever a body is accepted as encodes to the bytes that it was read from.
fn accepted_is_canonical(header: &Header, bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(body) = Body::parse(header, bytes) {
        prop_assert_eq!(body.encode(), bytes);
        // And its line of text is one line.
        prop_assert!(!body.to_string().contains('\n'));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_message_survives_the_wire((header, body) in message()) {
        let bytes = body.encode();
        prop_assert!(bytes.len() <= MAX_MESSAGE_BYTES);
        prop_assert_eq!(Body::parse(&header, &bytes), Ok(body));
        for len in 0..bytes.len() {
            prop_assert_ne!(Body::parse(&header, &bytes[..len]).map(|b| b.encode()), Ok(bytes.clone()));
        }
    }

    #[test]
    fn damaged_bodies_are_refused_or_mean_what_they_say(
        (header, body) in message(),
        damages in damage(),
    ) {
        let mut bytes = body.encode();
        apply(&damages, &mut bytes);
        accepted_is_canonical(&header, &bytes)?;
    }

    #[test]
    fn random_bodies_are_refused_or_mean_what_they_say(
        kind in code(Kind::ALL),
        is_reply in any::<bool>(),
        status in code(Status::ALL),
        bytes in vec(prop_oneof![3 => Just(0_u8), 1 => any::<u8>()], 0..200),
    ) {
        let flags = if is_reply { Flags::REPLY } else { Flags::NONE };
        let header = Header { flags, status, ..Header::new(kind) };
        accepted_is_canonical(&header, &bytes)?;
    }

    #[test]
    fn damaged_frames_are_refused_or_mean_what_they_say(
        pick in any::<prop::sample::Index>(),
        damages in damage(),
        with_sum in any::<bool>(),
    ) {
        let samples = samples();
        let sample = &samples[pick.index(samples.len())];
        let mut bytes = sample.frame();
        apply(&damages, &mut bytes);
        if with_sum && bytes.len() >= HEADER_LEN {
            // A hostile sender gets the checksum right.
            let end = bytes.len().min(HEADER_LEN + usize::from(u16::from_be_bytes([bytes[4], bytes[5]])));
            bytes[16..20].fill(0);
            let sum = crc32fast::hash(&bytes[..end]);
            bytes[16..20].copy_from_slice(&sum.to_be_bytes());
        }
        if let Ok((header, payload)) = Header::parse(&bytes, sample.service) {
            let mut again = Vec::new();
            header.emit(payload, &mut again);
            prop_assert_eq!(&again[..], &bytes[..again.len()]);
            accepted_is_canonical(&header, payload)?;
        }
    }

    #[test]
    fn a_page_is_as_long_as_fits(rows in rows(0), max in 0_usize..3000) {
        let n = page_len(&rows, max);
        let bytes = |n| rows[..n].iter().map(|r: &Row| r.to_body().len()).sum::<usize>();
        prop_assert!(bytes(n) <= max);
        prop_assert!(n == rows.len() || bytes(n + 1) > max);
    }
}

#[test]
fn what_no_honest_sender_says_is_refused() {
    fn refused<T: Wire + std::fmt::Debug>(value: &T) {
        let body = value.to_body();
        assert!(T::from_body(&body).is_err(), "{value:?}");
    }
    let range = |offset, len| ByteRange { offset, len };
    let missing = |ranges: &[ByteRange]| Missing {
        ranges: ranges.to_vec(),
    };
    refused(&missing(&[range(0, 0)]));
    refused(&missing(&[range(10, 5), range(0, 5)]));
    refused(&missing(&[range(0, 6), range(5, 5)]));
    refused(&missing(&[range(u32::MAX, 1)]));
    refused(&missing(&[range(0, MAX_MESSAGE_BYTES as u32 + 1)]));
    refused(&Missing {
        ranges: (0..=MAX_RANGES as u32).map(|i| range(i, 1)).collect(),
    });

    refused(&PathProbe::of_frame(1, MIN_MTU - 1, 1500));
    let mut padded = PathProbe::of_frame(1, MIN_MTU, 1500).to_body();
    assert!(PathProbe::from_body(&padded).is_ok());
    *padded.last_mut().unwrap() = 1;
    assert!(PathProbe::from_body(&padded).is_err(), "padding is zeroes");

    for sample in samples() {
        match sample.body {
            Body::ConnectRequest(m) => {
                refused(&ConnectRequest {
                    mtu: MIN_MTU - 1,
                    ..m.clone()
                });
                refused(&ConnectRequest {
                    credits: 0,
                    ..m.clone()
                });
                refused(&ConnectRequest {
                    initiator: Guid::NIL,
                    ..m
                });
            }
            Body::ConnectReply(m) => {
                refused(&ConnectReply {
                    mtu: 0,
                    ..m.clone()
                });
                refused(&ConnectReply {
                    credits: 0,
                    ..m.clone()
                });
                refused(&ConnectReply {
                    responder: Guid::NIL,
                    ..m
                });
            }
            Body::Register(m) => {
                let with = |macs: &[Mac]| Register {
                    macs: macs.to_vec(),
                    ..m.clone()
                };
                refused(&with(&[]));
                refused(&with(&[Mac::BROADCAST]));
                refused(&with(&[FABRIC_MULTICAST]));
                refused(&with(&[Mac([0; 6])]));
                refused(&with(&[m.macs[0], m.macs[0]]));
                refused(&with(
                    &(0..9).map(|i| Mac([2, 0, 0, 0, 0, i])).collect::<Vec<_>>(),
                ));
                refused(&Register {
                    entity: EntityType::Device,
                    ..m.clone()
                });
                refused(&Register {
                    guid: Guid::NIL,
                    ..m.clone()
                });
                // A host has no guests; of a unit each is named once, in order, and is not the home.
                refused(&Register {
                    entity: EntityType::Host,
                    ..m.clone()
                });
                let name = |name: &str| -> ClusterName { name.parse().expect("a name") };
                let with = |guests: &[ClusterName]| Register {
                    placement: Placement {
                        guests: guests.to_vec(),
                        ..m.placement.clone()
                    },
                    ..m.clone()
                };
                refused(&with(&[name("b"), name("a")]));
                refused(&with(&[name("a"), name("a")]));
                refused(&with(&[m.placement.home]));
                refused(&with(&[ClusterName::NONE]));
                refused(&with(
                    &(0..=MAX_GUESTS)
                        .map(|n| name(&format!("g{n:02}")))
                        .collect::<Vec<_>>(),
                ));
            }
            Body::Move(m) => {
                for (writer, row, owner) in [
                    (Guid::NIL, m.row, m.owner),
                    (m.writer, Guid::NIL, m.owner),
                    (m.writer, m.row, Guid::NIL),
                ] {
                    refused(&Move {
                        writer,
                        row,
                        owner,
                        ..m.clone()
                    });
                }
                refused(&Move {
                    to: ClusterName::NONE,
                    ..m.clone()
                });
                refused(&Move {
                    expected: Epoch(u64::MAX - 1),
                    ..m.clone()
                });
            }
            Body::FindHost(m) => {
                refused(&FindHost {
                    host: String::new(),
                    ..m.clone()
                });
                refused(&FindHost {
                    cluster: ClusterName::NONE,
                    ..m.clone()
                });
            }
            Body::FoundHost(_) => refused(&FoundHost { host: Guid::NIL }),
            Body::InUseRequest(m) => {
                refused(&InUseRequest { rows: Vec::new() });
                refused(&InUseRequest {
                    rows: vec![Guid::NIL],
                });
                let rows = [m.rows.clone(), m.rows.clone()].concat();
                refused(&InUseRequest { rows });
            }
            Body::MembershipReply(m) => {
                let again = [m.members.clone(), m.members.clone()].concat();
                refused(&MembershipReply {
                    members: again,
                    ..m.clone()
                });
                refused(&MembershipReply {
                    members: vec![],
                    ..m.clone()
                });
                refused(&MembershipReply {
                    unchanged: true,
                    ..m.clone()
                });
            }
            Body::TableRowsReply(m) => {
                let again = [m.rows.clone(), m.rows.clone()].concat();
                refused(&TableRowsReply {
                    rows: again,
                    ..m.clone()
                });
                refused(&TableRowsReply {
                    rows: vec![],
                    ..m.clone()
                });
                refused(&Row {
                    block_size: 1000,
                    ..m.rows[0].clone()
                });
                refused(&Row {
                    guid: Guid::NIL,
                    ..m.rows[0].clone()
                });
                let unsorted = m.rows.iter().rev().cloned().collect();
                refused(&TableRowsReply {
                    rows: unsorted,
                    ..m
                });
            }
            Body::TableDigestsRequest(m) => {
                let parts = |level, numbers: &[u16]| Parts {
                    level,
                    numbers: numbers.to_vec(),
                };
                for parts in [
                    parts(5, &[0]),
                    parts(0, &[1]),
                    parts(2, &[256]),
                    parts(2, &[]),
                    parts(2, &[1, 1]),
                    parts(2, &[2, 1]),
                ] {
                    refused(&parts);
                }
                for depth in [0, 3] {
                    refused(&TableDigestsRequest { depth, ..m.clone() });
                }
                refused(&TableDigestsRequest {
                    parts: parts(4, &[0]),
                    depth: 1,
                });
                refused(&TableDigestsRequest {
                    parts: parts(3, &[0]),
                    depth: 2,
                });
            }
            Body::Restore(m) => {
                let [a, b, ..] = &m.registers[..] else {
                    unreachable!()
                };
                let with = |after, registers| Restore {
                    after,
                    registers,
                    ..m.clone()
                };
                refused(&with(m.after, vec![b.clone(), a.clone()]));
                refused(&with(m.after, vec![a.clone(), a.clone()]));
                refused(&with(m.after, vec![]));
                refused(&with(a.row, vec![a.clone(), b.clone()]));
            }
            Body::ControllersReply(m) => {
                let [a, b] = &m.controllers[..] else {
                    unreachable!()
                };
                let with = |controllers| ControllersReply {
                    controllers,
                    ..m.clone()
                };
                refused(&with(vec![b.clone(), a.clone()]));
                refused(&with(vec![a.clone(), a.clone()]));
                refused(&with(vec![
                    a.clone(),
                    ControllerRecord {
                        guid: a.guid,
                        ..b.clone()
                    },
                ]));
                refused(&with(vec![ControllerRecord {
                    ioc: IocNumber(0),
                    ..b.clone()
                }]));
            }
            Body::DevicesReply(m) => {
                let [a, b] = &m.devices[..] else {
                    unreachable!()
                };
                let with = |devices| DevicesReply {
                    devices,
                    ..m.clone()
                };
                refused(&with(vec![b.clone(), a.clone()]));
                refused(&with(vec![
                    a.clone(),
                    DeviceRecord {
                        guid: a.guid,
                        ..b.clone()
                    },
                ]));
                refused(&with(vec![DeviceRecord {
                    iod: IodNumber(0),
                    ..b.clone()
                }]));
                // What one device cannot be does not cost the others.
                for block_size in [0, 513, u32::MAX] {
                    let odd = DeviceRecord {
                        block_size,
                        ..b.clone()
                    };
                    let list = with(vec![a.clone(), odd]);
                    assert_eq!(DevicesReply::from_body(&list.to_body()), Ok(list));
                }
            }
            Body::LeaseRequest(m) => {
                let with = |verb, force, term| LeaseRequest {
                    verb,
                    force,
                    holder: Holder {
                        term,
                        ..m.holder.clone()
                    },
                };
                refused(&with(LeaseVerb::Query, false, 1));
                refused(&with(LeaseVerb::Ask, false, 0));
                refused(&with(LeaseVerb::Renew, true, 1));
                refused(&Holder {
                    host: Guid::NIL,
                    ..m.holder
                });
            }
            Body::LeaseReply(m) => {
                refused(&LeaseReply {
                    holder: None,
                    ..m.clone()
                });
                let holder = m.holder.clone().map(|h| Holder { term: 0, ..h });
                refused(&LeaseReply {
                    holder,
                    ..m.clone()
                });
                refused(&LeaseReply { promised: 1, ..m });
            }
            Body::CompareAndSet(m) => {
                refused(&CompareAndSet {
                    changes: vec![],
                    ..m.clone()
                });
                let a = m.changes[0].clone();
                let over = Change {
                    expected: Epoch(u64::MAX),
                    ..a.clone()
                };
                refused(&CompareAndSet {
                    changes: vec![over],
                    ..m.clone()
                });
                // An extent of itself, and a removed one that somebody owns.
                let facts = ExtentFacts {
                    device: a.row,
                    range: Extent { offset: 0, len: 1 },
                    name: String::new(),
                    present: true,
                };
                let gone = ExtentFacts {
                    device: Guid(!a.row.0),
                    present: false,
                    ..facts.clone()
                };
                for extent in [facts, gone] {
                    let bad = Change {
                        ownership: Ownership::Dedicated(Guid(1)),
                        extent: Some(extent),
                        ..a.clone()
                    };
                    refused(&CompareAndSet {
                        changes: vec![bad],
                        ..m.clone()
                    });
                }
                refused(&CompareAndSet {
                    changes: vec![a.clone(), a],
                    ..m
                });
            }
            _ => {}
        }
    }
}

#[test]
fn the_largest_change_and_its_answer_fit_a_message() {
    let shared = Ownership::shared((1..=MAX_OWNERS as u128).map(Guid).collect()).expect("enough");
    let with = |n: u128| CompareAndSet {
        term: 1,
        writer: Guid(1),
        changes: (1..=n)
            .map(|i| Change {
                row: Guid(i),
                expected: Epoch(1),
                ownership: shared.clone(),
                extent: (i % 2 == 0).then(|| ExtentFacts {
                    device: Guid(u128::MAX),
                    range: Extent { offset: 0, len: 1 },
                    name: "x".repeat(63),
                    present: true,
                }),
            })
            .collect(),
    };
    let most = (1..1000)
        .find(|n| !with(*n).is_within_limits())
        .expect("a limit")
        - 1;
    let largest = with(most);
    assert!(most > 400, "{most}");
    assert!(CompareAndSet::from_body(&largest.to_body()).is_ok());
    assert!(CompareAndSet::from_body(&with(most + 1).to_body()).is_err());
    let registers = largest
        .changes
        .iter()
        .map(|c| OwnershipRegister {
            row: c.row,
            ownership: c.ownership.clone(),
            owned: OwnershipStamp::default(),
            extent: c.extent.clone(),
        })
        .collect();
    let reply = RegistersReply {
        more: false,
        registers,
    };
    assert!(largest.to_body().len() <= MAX_MESSAGE_BYTES);
    assert!(reply.to_body().len() <= MAX_MESSAGE_BYTES);
}

#[test]
fn text_over_the_limit_is_cut_where_it_is_written() {
    let long = Row {
        name: "ä".repeat(100),
        vendor: "v".repeat(300),
        ..Row::new(Guid(1), EntityType::Host)
    };
    let read = Row::from_body(&long.to_body()).expect("readable");
    assert_eq!(read.name, "ä".repeat(31));
    assert_eq!(read.vendor, "v".repeat(63));
}

#[test]
fn the_largest_row_keeps_within_its_limit() {
    let text = "x".repeat(63);
    let row = Row {
        macs: (1..=MAX_MACS as u8)
            .map(|i| Mac([2, 0, 0, 0, 0, i]))
            .collect(),
        name: text.clone(),
        vendor: text.clone(),
        model: text.clone(),
        serial: text,
        ownership: Ownership::shared((1..=128).map(Guid).collect()).expect("enough"),
        ..Row::new(Guid(1), EntityType::Device)
    };
    assert!(row.to_body().len() <= row::MAX_ROW_BYTES);
}
