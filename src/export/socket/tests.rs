//! Stories of the NBD sockets: one thread is the loop and all of its clients.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;
use crate::export::block::BlockOp;

const DEVICE: Guid = Guid(1);
const SIZE: u64 = 1 << 20;
/// A plain greeting, option GO for the empty name.
const GO: &[u8] = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";
/// Bytes of the answer: greeting, export, block sizes, acknowledgement.
const WENT: usize = 18 + 32 + 34 + 20;

fn info() -> ExportInfo {
    ExportInfo {
        name: "disk".to_owned(),
        description: String::new(),
        size_bytes: SIZE,
        block_size: 512,
        read_only: false,
        fua: true,
        discard: true,
        write_zeroes: true,
        rotational: false,
    }
}

struct Rig {
    dir: tempfile::TempDir,
    sockets: NbdSockets,
    asked: Vec<BlockRequest>,
}

impl Rig {
    fn new() -> Self {
        let mut rig = Self {
            dir: tempfile::tempdir().unwrap(),
            sockets: NbdSockets::new().unwrap(),
            asked: Vec::new(),
        };
        let path = rig.path();
        rig.sockets.open(DEVICE, &path, info()).unwrap();
        rig
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.sock")
    }

    fn connect(&self) -> UnixStream {
        let client = UnixStream::connect(self.path()).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    /// Turns the loop until `done`, which is asked again when the sockets or `client` are ready.
    fn turn<T>(
        &mut self,
        client: Option<&UnixStream>,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            assert!(Instant::now() < deadline, "nothing happens");
            let mut fds: Vec<_> = [Some(self.sockets.as_fd()), client.map(AsFd::as_fd)]
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            poll(&mut fds, PollTimeout::from(1000_u16)).unwrap();
            self.poll();
        }
    }

    fn poll(&mut self) {
        self.sockets.poll(|r| self.asked.push(r)).unwrap();
    }

    fn read(&mut self, client: &UnixStream, len: usize) -> Vec<u8> {
        let mut got = vec![0; len];
        let mut have = 0;
        self.turn(Some(client), |_| {
            have += would_block((&mut &*client).read(&mut got[have..])).unwrap_or(0);
            (have == len).then_some(())
        });
        got
    }

    /// The client sees the end of the connection.
    fn sees_end(&mut self, client: &UnixStream) {
        let mut rest = [0; 4096];
        self.turn(Some(client), |_| match (&mut &*client).read(&mut rest) {
            Ok(0) => Some(()),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => Some(()),
            Ok(_) => None,
            Err(e) => would_block::<()>(Err(e)),
        });
    }

    fn negotiated(&mut self) -> UnixStream {
        let client = self.connect();
        (&client).write_all(GO).unwrap();
        self.read(&client, WENT);
        client
    }

    fn request(&mut self) -> BlockRequest {
        self.turn(None, |rig| rig.asked.pop())
    }
}

fn would_block<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Err(e) if e.kind() == ErrorKind::WouldBlock => None,
        result => Some(result.unwrap()),
    }
}

fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

#[test]
fn requests_and_completions_cross_the_socket() {
    let mut rig = Rig::new();
    let client = rig.negotiated();
    let data = vec![0x5a; 4096];
    (&client)
        .write_all(&[&request(1, 9, 8192, 4096)[..], &data].concat())
        .unwrap();
    let write = rig.request();
    assert_eq!((write.device, write.op), (DEVICE, BlockOp::Write));
    assert_eq!((write.offset, write.data), (8192, data));
    rig.sockets.complete(write.token, Ok(Vec::new()));
    rig.poll();
    assert_eq!(
        rig.read(&client, 16)[4..],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]
    );
    let status: Vec<_> = rig.sockets.exports().collect();
    assert_eq!(status[0].connection_count, 1);
}

#[test]
fn the_socket_is_ours_alone_and_goes_away() {
    let mut rig = Rig::new();
    let path = rig.path();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(rig.sockets.close(DEVICE));
    assert!(!path.exists());
    assert!(!rig.sockets.close(DEVICE));

    // Another's socket at the same place is left alone.
    rig.sockets.open(DEVICE, &path, info()).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    rig.sockets.close(DEVICE);
    assert!(path.exists());
}

#[test]
fn stale_files_are_replaced_and_others_are_not() {
    let mut rig = Rig::new();
    let stale = rig.dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    assert!(stale.exists());
    rig.sockets.open(Guid(2), &stale, info()).unwrap();
    UnixStream::connect(&stale).unwrap();

    let live = rig.dir.path().join("live.sock");
    let _other = UnixListener::bind(&live).unwrap();
    let refused = rig.sockets.open(Guid(3), &live, info());
    assert!(matches!(refused, Err(SocketError::InUse(_))));
    let file = rig.dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let refused = rig.sockets.open(Guid(3), &file, info());
    assert!(matches!(refused, Err(SocketError::NotASocket(_))));
    assert_eq!(fs::read(&file).unwrap(), b"precious");

    let refused = rig.sockets.open(DEVICE, &live, info());
    assert!(matches!(refused, Err(SocketError::Exported(DEVICE))));
    let odd = ExportInfo {
        block_size: 520,
        ..info()
    };
    let free = rig.dir.path().join("free.sock");
    let refused = rig.sockets.open(Guid(3), &free, odd);
    assert!(matches!(refused, Err(SocketError::BlockSize(520))));
    for place in ["no/such/directory", &"x".repeat(200)] {
        let place = rig.dir.path().join(place);
        let error = rig.sockets.open(Guid(3), &place, info()).unwrap_err();
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

#[test]
fn a_release_ends_the_connections_of_its_device_only() {
    let mut rig = Rig::new();
    let other = rig.dir.path().join("other.sock");
    rig.sockets.open(Guid(2), &other, info()).unwrap();
    let client = rig.negotiated();
    let bystander = UnixStream::connect(&other).unwrap();
    bystander.set_nonblocking(true).unwrap();
    (&bystander).write_all(GO).unwrap();
    rig.read(&bystander, WENT);

    (&client).write_all(&request(0, 1, 0, 512)).unwrap();
    let read = rig.request();
    assert!(rig.sockets.close(DEVICE));
    rig.sockets.complete(read.token, Ok(vec![0; 512]));
    rig.sees_end(&client);
    assert!(UnixStream::connect(rig.path()).is_err());

    (&bystander).write_all(&request(3, 1, 0, 0)).unwrap();
    assert_eq!(rig.request().device, Guid(2));
}

#[test]
fn a_hostile_client_harms_itself_only() {
    let mut rig = Rig::new();
    let good = rig.negotiated();
    let junk = rig.connect();
    (&junk).write_all(&[0xa5; 9000]).unwrap();
    rig.sees_end(&junk);
    let late = rig.negotiated();
    (&late).write_all(&[0xa5; 9000]).unwrap();
    rig.sees_end(&late);
    drop(rig.connect());
    (&good).write_all(&request(3, 1, 0, 0)).unwrap();
    assert_eq!(rig.request().op, BlockOp::Flush);
    rig.turn(None, |rig| (rig.sockets.clients.len() == 1).then_some(()));
}

#[test]
fn connections_are_bounded_and_half_open_ones_make_room() {
    let mut rig = Rig::new();
    let silent = rig.connect();
    let mut clients: Vec<_> = (1..MAX_CONNECTIONS).map(|_| rig.negotiated()).collect();
    assert_eq!(rig.sockets.clients.len(), MAX_CONNECTIONS);
    clients.push(rig.negotiated());
    rig.sees_end(&silent);
    let refused = rig.connect();
    rig.sees_end(&refused);
    assert_eq!(rig.sockets.clients.len(), MAX_CONNECTIONS);
    clients.pop();
    rig.turn(None, |rig| {
        (rig.sockets.clients.len() < MAX_CONNECTIONS).then_some(())
    });
    rig.negotiated();
}

#[test]
fn a_client_that_does_not_read_waits_alone_and_loses_nothing() {
    let mut rig = Rig::new();
    let slow = rig.negotiated();
    let (count, len) = (400_u64, 16 << 10);
    let asked: Vec<u8> = (0..count).flat_map(|n| request(0, n, 0, len)).collect();
    let (mut written, mut got) = (0, Vec::new());
    let mut piece = vec![0; 1 << 20];
    let mut answered = 0_u64;
    let mut reading = false;
    rig.turn(Some(&slow), |rig| {
        written += would_block((&slow).write(&asked[written..])).unwrap_or(0);
        rig.poll();
        while !rig.asked.is_empty() {
            for r in rig.asked.drain(..) {
                let data = vec![answered as u8; r.len as usize];
                rig.sockets.complete(r.token, Ok(data));
                answered += 1;
            }
            rig.poll();
        }
        if reading {
            let n = would_block((&slow).read(&mut piece)).unwrap_or(0);
            got.extend_from_slice(&piece[..n]);
        } else {
            // What is answered but not read stays within the limits, and the loop can sleep.
            assert!(answered < 200, "{answered}");
            let mut fds = [PollFd::new(rig.sockets.as_fd(), PollFlags::POLLIN)];
            reading = answered > 0 && poll(&mut fds, PollTimeout::ZERO) == Ok(0);
        }
        (got.len() == count as usize * (16 + len as usize)).then_some(())
    });
    for (n, reply) in got.chunks(16 + len as usize).enumerate() {
        assert_eq!(reply[8..16], (n as u64).to_be_bytes());
        assert!(reply[16..].iter().all(|byte| *byte == n as u8));
    }
}

#[test]
fn new_facts_reach_live_connections_and_newcomers() {
    let mut rig = Rig::new();
    let client = rig.negotiated();
    let smaller = ExportInfo {
        size_bytes: 4096,
        ..info()
    };
    assert!(rig.sockets.update(DEVICE, smaller.clone()));
    (&client).write_all(&request(0, 1, 4096, 512)).unwrap();
    assert_eq!(rig.read(&client, 16)[7], 22);
    let newcomer = rig.connect();
    (&newcomer).write_all(GO).unwrap();
    assert_eq!(rig.read(&newcomer, WENT)[40..48], 4096_u64.to_be_bytes());
    assert!(!rig.sockets.update(Guid(9), smaller.clone()));
    let bad = ExportInfo {
        block_size: 0,
        ..smaller
    };
    assert!(!rig.sockets.update(DEVICE, bad));
    rig.sees_end(&client);
    assert_eq!(rig.sockets.exports().count(), 0);
}

#[test]
fn what_a_lost_client_left_under_way_is_not_overtaken() {
    let mut rig = Rig::new();
    let lost = rig.negotiated();
    let bystander = rig.negotiated();
    (&lost)
        .write_all(&[&request(1, 1, 0, 512)[..], &[1; 512]].concat())
        .unwrap();
    let old = rig.request();
    (&lost).write_all(&request(0, 2, 0, 512)).unwrap();
    let read = rig.request();
    drop(lost);
    rig.turn(None, |rig| (rig.sockets.clients.len() == 1).then_some(()));

    // The same client again, and another one: neither's request passes the old write.
    let again = rig.connect();
    (&again).write_all(GO).unwrap();
    for (client, cookie) in [(&again, 3), (&bystander, 4)] {
        let bytes = [&request(1, cookie, 0, 512)[..], &[2; 512]].concat();
        (&mut &*client).write_all(&bytes).unwrap();
    }
    let mut idle = [PollFd::new(rig.sockets.as_fd(), PollFlags::POLLIN)];
    while poll(&mut idle, PollTimeout::ZERO) != Ok(0) {
        rig.sockets.poll(|r| rig.asked.push(r)).unwrap();
        idle = [PollFd::new(rig.sockets.as_fd(), PollFlags::POLLIN)];
    }
    assert_eq!(rig.asked, []);
    rig.sockets.complete(read.token, Ok(vec![0; 512]));
    rig.poll();
    assert_eq!(rig.asked, [], "a read holds nothing up, and frees nothing");
    rig.sockets.complete(old.token, Ok(Vec::new()));
    let mut tokens = [rig.request().token, rig.request().token];
    tokens.sort_unstable();
    assert!(tokens[0] != tokens[1] && !tokens.contains(&old.token));
    rig.read(&again, WENT);
    for token in tokens {
        rig.sockets.complete(token, Ok(Vec::new()));
    }
    rig.poll();
    assert_eq!(rig.read(&again, 16)[15], 3);
    assert_eq!(rig.read(&bystander, 16)[15], 4);

    // A release forgets what was left under way.
    (&again)
        .write_all(&[&request(1, 5, 0, 512)[..], &[1; 512]].concat())
        .unwrap();
    rig.request();
    drop(again);
    rig.turn(None, |rig| (rig.sockets.orphans.len() == 1).then_some(()));
    let path = rig.path();
    rig.sockets.close(DEVICE);
    rig.sockets.open(DEVICE, &path, info()).unwrap();
    let fresh = rig.negotiated();
    (&fresh).write_all(&request(3, 6, 0, 0)).unwrap();
    assert_eq!(rig.request().op, BlockOp::Flush);
}

#[test]
fn the_kernels_driver_negotiates_nothing_and_what_it_has_lost_is_not_overtaken() {
    let mut sockets = NbdSockets::new().unwrap();
    let connect = |sockets: &mut NbdSockets| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        sockets.serve_kernel(DEVICE, info(), vec![ours]).unwrap();
        let read = [
            &0x2560_9513_u32.to_be_bytes()[..],
            &[0; 4],
            &7_u64.to_be_bytes(),
            &0_u64.to_be_bytes(),
            &512_u32.to_be_bytes(),
        ];
        theirs.write_all(&read.concat()).unwrap();
        theirs
    };
    let requests = |sockets: &mut NbdSockets| {
        let mut taken = Vec::new();
        for _ in 0..3 {
            sockets.poll(|request| taken.push(request.token)).unwrap();
        }
        taken
    };
    let first = connect(&mut sockets);
    let [lost] = requests(&mut sockets)[..] else {
        panic!("one read")
    };
    drop(first);
    assert!(requests(&mut sockets).is_empty());
    assert_eq!(sockets.take_lost(), [DEVICE]);
    assert!(sockets.take_lost().is_empty());
    // The same read again waits until the first has ended.
    let mut second = connect(&mut sockets);
    assert!(requests(&mut sockets).is_empty());
    sockets.complete(lost, Ok(vec![1; 512]));
    let [again] = requests(&mut sockets)[..] else {
        panic!("the read, once more")
    };
    sockets.complete(again, Ok(vec![2; 512]));
    assert!(requests(&mut sockets).is_empty());
    let mut reply = [0; 16 + 512];
    second.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
    assert_eq!(reply[16..], [2; 512]);
    assert!(sockets.close(DEVICE));
    assert_eq!(sockets.exports().count(), 0);
}
