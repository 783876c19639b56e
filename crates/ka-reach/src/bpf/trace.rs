//! The BPF program that records the end of each TCP connection.
//!
//! The kernel runs the program at the tracepoint `sock:inet_sock_set_state`, in all network namespaces. `tcp_done` in
//! net/ipv4/tcp.c changes the state to CLOSE when it ends a connection. At that moment:
//!
//! - `sk_err` has the error that the program's next call gets. All ways to end a connection abnormally set it before:
//!   `tcp_reset`, `tcp_write_err` and `tcp_abort`. If the connection ended by FINs, it is 0.
//! - The state before is known, so a failed connect(2) can be distinguished from the end of a connection. At the
//!   tracepoint `sock:inet_sk_error_report`, that state is already lost.
//! - The counters of unanswered probes and retransmissions, and the times, are those that made the kernel give up. The
//!   write queue is empty already (Linux 6.11 and later), but `snd_una` and `write_seq` still say whether data was
//!   unacknowledged.
//! - The program that has the socket has not noticed the end yet, so the socket still has its inode.
//!
//! If no process has a descriptor any more (`SOCK_DEAD`), its program has closed the connection, and the BPF program
//! records nothing. The BPF program copies raw fields. The reader converts them ([`TraceRecord`]).
//!
//! The kernel does not run a BPF program in an interrupt that arrives while the same program runs on the same processor
//! (`__bpf_trace_run` in kernel/trace/bpf_trace.c). The timers of keepalive and of retransmission fire in such
//! interrupts, so one program would miss ends on a busy machine. So there are two equal programs, each with a buffer of
//! its own. Of the two, at most one is interrupted, and the other one records the end. The reader reports each end once.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use ka_core::Settings;

use super::btf::{Field, TRACED, Types};
use super::insn::{Assembler, Cond, Helper, Insn, Reg, Size};
use super::sys::{self, Kind, RingBuffer};
use super::{Counter, Feature, host, load, map_with, with_memory};
use crate::diag::{self, State};
use crate::error::{Error, Result};

const TRACER: &str = "ka_trace";
const BUFFER: &str = "ka_deaths";
const LOST: &str = "ka_lost";

/// The size of a ring buffer in bytes. It holds 5,957 records.
const BUFFER_SIZE: u32 = 1 << 20;

const RING_BUFFER: Feature = Feature {
    name: "ring buffers of BPF programs, and types of the kernel in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF)",
    since: (5, 9),
    capabilities: &host::FOR_TRACING,
};

/// A field that the program copies.
struct Copied {
    /// The structure, and the path of the field in it.
    field: (&'static str, &'static str),
    /// The number of 32-bit words that the field takes in a record.
    words: i16,
    /// True if some kernels lack the field. Its words are 0 then.
    is_optional: bool,
}

const fn copied(structure: &'static str, path: &'static str, words: i16) -> Copied {
    Copied { field: (structure, path), words, is_optional: false }
}

const fn optional(path: &'static str, words: i16) -> Copied {
    Copied { field: (SOCKET, path), words, is_optional: true }
}

const SOCKET: &str = "tcp_sock";
const NET: &str = "net";
const ERROR: &str = "inet_conn.icsk_inet.sk.sk_err";
const FLAGS: &str = "inet_conn.icsk_inet.sk.__sk_common.skc_flags";
const NAMESPACE: &str = "inet_conn.icsk_inet.sk.__sk_common.skc_net";
const NAMESPACE_INODE: &str = "ns.inum";

/// The fields that the program copies, in the order of [`TraceRecord::parse`].
const COPIED: [Copied; 26] = [
    copied(SOCKET, "inet_conn.icsk_inet.sk.__sk_common.skc_cookie", 2),
    copied(SOCKET, FLAGS, 2),
    // Kernels without IPv6 lack these two.
    optional("inet_conn.icsk_inet.sk.__sk_common.skc_v6_rcv_saddr", 4),
    optional("inet_conn.icsk_inet.sk.__sk_common.skc_v6_daddr", 4),
    copied(SOCKET, "inet_conn.icsk_inet.sk.__sk_common.skc_rcv_saddr", 1),
    copied(SOCKET, "inet_conn.icsk_inet.sk.__sk_common.skc_daddr", 1),
    copied(SOCKET, "inet_conn.icsk_inet.sk.__sk_common.skc_family", 1),
    copied(SOCKET, "inet_conn.icsk_inet.inet_sport", 1),
    copied(SOCKET, "inet_conn.icsk_inet.sk.__sk_common.skc_dport", 1),
    copied(SOCKET, "inet_conn.icsk_inet.sk.__sk_common.skc_bound_dev_if", 1),
    copied(SOCKET, ERROR, 1),
    // It was a bit field before.
    optional("inet_conn.icsk_inet.sk.sk_shutdown", 1),
    copied(SOCKET, "keepalive_time", 1),
    copied(SOCKET, "keepalive_intvl", 1),
    copied(SOCKET, "keepalive_probes", 1),
    copied(SOCKET, "inet_conn.icsk_user_timeout", 1),
    copied(SOCKET, "inet_conn.icsk_probes_out", 1),
    copied(SOCKET, "inet_conn.icsk_retransmits", 1),
    copied(SOCKET, "rcv_tstamp", 1),
    copied(SOCKET, "inet_conn.icsk_ack.lrcvtime", 1),
    copied(SOCKET, "snd_una", 1),
    copied(SOCKET, "write_seq", 1),
    copied(NET, NAMESPACE_INODE, 1),
    copied(NET, "ipv4.sysctl_tcp_keepalive_time", 1),
    copied(NET, "ipv4.sysctl_tcp_keepalive_intvl", 1),
    copied(NET, "ipv4.sysctl_tcp_keepalive_probes", 1),
];

/// The offsets in a record of the values that are not copied from a field: the inode, the time in nanoseconds and in
/// jiffies, and the state before. The copied fields follow.
const INODE: i16 = 0;
const NANOSECONDS: i16 = 8;
const JIFFIES: i16 = 16;
const STATE: i16 = 24;
const FIELDS: i16 = 32;
/// The number of 32-bit words of the copied fields.
const WORDS: i16 = 34;
/// The size of a record in bytes.
const SIZE: i16 = FIELDS + 4 * WORDS;
/// The stack offset of the record that is being built.
const RECORD: i16 = -SIZE;

/// Returns the program. It records only connections of the network namespace with this inode, or of all.
fn program(types: &Types<'_>, namespace: Option<u32>, buffer: i32, lost: i32) -> Option<Vec<Insn>> {
    const SOCK: Reg = Reg::R6;
    const NETWORK: Reg = Reg::R7;
    const CONTEXT: Reg = Reg::R8;
    /// `SOCK_DEAD` of `enum sock_flags`
    const DEAD: i32 = 0;
    let field = |structure, path| types.field(structure, path);
    let place = |structure, path| field(structure, path).map(|field| field.offset);
    let mut program = Assembler::default();
    let skip = program.label();
    // if (new_state != TCP_CLOSE) goto skip; if (old_state is not that of a connection) goto skip;
    program.mov(CONTEXT, Reg::R1);
    program.load(Size::Double, Reg::R1, CONTEXT, 16);
    program.jump_if(Reg::R1, Cond::NotEqual, State::Close as i32, skip);
    program.load(Size::Double, Reg::R1, CONTEXT, 8);
    for state in State::ALL.into_iter().filter(|state| !state.is_connected()) {
        program.jump_if(Reg::R1, Cond::Equal, state as i32, skip);
    }
    program.store(Size::Double, Reg::R10, RECORD + STATE, Reg::R1);
    // struct tcp_sock *sock = bpf_skc_to_tcp_sock(sk); if (!sock) goto skip;
    program.load(Size::Double, Reg::R1, CONTEXT, 0);
    program.call(Helper::SkcToTcpSock);
    program.jump_if_null(Reg::R0, skip);
    program.mov(SOCK, Reg::R0);
    // if (!sock->sk_err || sock->sk_flags & SOCK_DEAD) goto skip;
    program.load(Size::Word, Reg::R1, SOCK, place(SOCKET, ERROR)?);
    program.jump_if(Reg::R1, Cond::Equal, 0, skip);
    program.load(Size::Double, Reg::R1, SOCK, place(SOCKET, FLAGS)?);
    program.jump_if(Reg::R1, Cond::AnyBit, 1 << DEAD, skip);
    // struct net *network = sock->skc_net.net; if (network->ns.inum != namespace) goto skip;
    program.load(Size::Double, NETWORK, SOCK, place(SOCKET, NAMESPACE)?);
    if let Some(namespace) = namespace {
        program.load(Size::Word, Reg::R1, NETWORK, place(NET, NAMESPACE_INODE)?);
        program.jump_if(Reg::R1, Cond::NotEqual, namespace.cast_signed(), skip);
    }
    // record.inode = sock->sk_socket->file->f_inode->i_ino; a null pointer gives 0.
    program.load(Size::Double, Reg::R1, SOCK, place(SOCKET, "inet_conn.icsk_inet.sk.sk_socket")?);
    program.load(Size::Double, Reg::R1, Reg::R1, place("socket", "file")?);
    program.load(Size::Double, Reg::R1, Reg::R1, place("file", "f_inode")?);
    let number = field("inode", "i_ino")?;
    program.load(width(number)?, Reg::R1, Reg::R1, number.offset);
    program.store(Size::Double, Reg::R10, RECORD + INODE, Reg::R1);
    program.call(Helper::KtimeGetNs);
    program.store(Size::Double, Reg::R10, RECORD + NANOSECONDS, Reg::R0);
    program.call(Helper::Jiffies64);
    program.store(Size::Double, Reg::R10, RECORD + JIFFIES, Reg::R0);
    let mut to = RECORD + FIELDS;
    for Copied { field: (structure, path), words, is_optional } in &COPIED {
        let from = if *structure == SOCKET { SOCK } else { NETWORK };
        match (field(structure, path), words) {
            (None, _) if *is_optional => {
                for word in 0..*words {
                    program.store(Size::Word, Reg::R10, to + 4 * word, 0);
                }
            }
            (Some(field), 1) => {
                program.load(width(field)?, Reg::R1, from, field.offset);
                program.store(Size::Word, Reg::R10, to, Reg::R1);
            }
            // `long` has 4 bytes on 32-bit machines.
            (Some(field @ Field { size: 4, .. }), 2) => {
                program.load(Size::Word, Reg::R1, from, field.offset);
                program.store(Size::Double, Reg::R10, to, Reg::R1);
            }
            (Some(field), words) => {
                for word in 0..*words {
                    program.load(Size::Word, Reg::R1, from, field.offset + 4 * word);
                    program.store(Size::Word, Reg::R10, to + 4 * word, Reg::R1);
                }
            }
            (None, _) => return None,
        }
        to += 4 * words;
    }
    // if (bpf_ringbuf_output(buffer, &record, size, 0)) lost += 1;
    program.load_map(Reg::R1, buffer);
    program.mov(Reg::R2, Reg::R10);
    program.add(Reg::R2, i32::from(RECORD));
    program.mov(Reg::R3, i32::from(SIZE));
    program.mov(Reg::R4, 0);
    program.call(Helper::RingbufOutput);
    program.jump_if(Reg::R0, Cond::Equal, 0, skip);
    program.load_map_value(Reg::R1, lost);
    program.mov(Reg::R2, 1);
    program.add_atomically(Reg::R1, 0, Reg::R2);
    program.place(skip);
    program.mov(Reg::R0, 0);
    program.exit();
    (to == 0).then(|| program.finish())
}

/// Returns the size of a load of this field.
const fn width(field: Field) -> Option<Size> {
    match field.size {
        1 => Some(Size::Byte),
        2 => Some(Size::Half),
        4 => Some(Size::Word),
        8 => Some(Size::Double),
        _ => None,
    }
}

/// The end of a connection, as the kernel recorded it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TraceRecord {
    /// The cookie of the socket. 0 if the kernel has not given it one.
    pub(crate) cookie: u64,
    /// The inode of the socket. 0 if no process has it.
    pub(crate) inode: u64,
    /// The inode of the network namespace.
    pub(crate) namespace: u32,
    /// The time of the end. CLOCK_MONOTONIC
    pub(crate) at: Duration,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// The state before the end.
    pub(crate) state: State,
    /// The pending error of the socket.
    pub(crate) errno: i32,
    /// True if the program had shut down both directions.
    pub(crate) is_shut_down: bool,
    /// The settings. The kernel does not record `TCP_RTO_MAX_MS`.
    pub(crate) settings: Settings,
    /// The count of unanswered probes.
    pub(crate) probes: u32,
    /// True if data of the program was unacknowledged or unsent.
    pub(crate) has_data: bool,
    /// The sequence number after the data that the program has written.
    written: u32,
    /// The time since the last segment from the peer, in milliseconds.
    pub(crate) silent_ms: u64,
}

impl TraceRecord {
    /// Parses a record. `hz` is the number of jiffies in a second.
    fn parse(record: &[u8], hz: u32) -> Option<Self> {
        /// `SHUTDOWN_MASK`
        const BOTH: u32 = 3;
        /// `1 << SOCK_KEEPOPEN` of `enum sock_flags`
        const KEEPALIVE: u64 = 1 << 3;
        let double = |place: i16| {
            let bytes = record.get(usize::try_from(place).ok()?..)?.first_chunk()?;
            Some(u64::from_ne_bytes(*bytes))
        };
        let mut words = [[0_u8; 4]; WORDS as usize];
        let fields = record.get(usize::try_from(FIELDS).ok()?..)?.chunks_exact(4);
        for (word, bytes) in words.iter_mut().zip(fields) {
            word.copy_from_slice(bytes);
        }
        let [
            cookie_low,
            cookie_high,
            flags_low,
            flags_high,
            _,
            _,
            _,
            _,
            _,
            _,
            _,
            _, // the IPv6 addresses: see below
            local_v4,
            peer_v4,
            family,
            local_port,
            peer_port,
            interface,
            errno,
            shutdown,
            idle,
            intvl,
            cnt,
            user_timeout,
            probes,
            _retransmits,
            received_ack,
            received_data,
            acknowledged,
            written,
            namespace,
            system_idle,
            system_intvl,
            system_cnt,
        ] = words;
        let [local_v6, peer_v6] = [4, 8].map(|place| words.get(place..).unwrap_or_default());
        let number = u32::from_ne_bytes;
        let wide = |low, high| [low, high].as_flattened().first_chunk().copied().map(u64::from_ne_bytes);
        let port = |word| u16::from_be((number(word) & 0xffff) as u16);
        let address = |v4: [u8; 4], v6: &[[u8; 4]], port: u16| -> Option<SocketAddr> {
            if number(family) == libc::AF_INET.cast_unsigned() {
                return Some((Ipv4Addr::from(v4), port).into());
            }
            let v6 = Ipv6Addr::from(*v6.as_flattened().first_chunk::<16>()?);
            Some(diag::address(v6.into(), port, number(interface)))
        };
        let jiffies = (double(JIFFIES)? & 0xffff_ffff) as u32;
        let ago = |word| jiffies.wrapping_sub(number(word));
        let silent = u64::from(ago(received_ack).min(ago(received_data)));
        // The socket's own value is 0 if it follows the sysctl.
        let timer = |own: [u8; 4], system: [u8; 4], unit: u32| {
            let value = if number(own) == 0 { system } else { own };
            number(value).cast_signed() / unit.cast_signed()
        };
        Some(Self {
            cookie: wide(cookie_low, cookie_high)?,
            inode: double(INODE)?,
            namespace: number(namespace),
            at: Duration::from_nanos(double(NANOSECONDS)?),
            local: address(local_v4, local_v6, port(local_port))?,
            peer: address(peer_v4, peer_v6, port(peer_port))?,
            state: State::numbered(u8::try_from(double(STATE)?).ok()?)?,
            errno: number(errno).cast_signed(),
            is_shut_down: number(shutdown) & BOTH == BOTH,
            settings: Settings {
                enabled: wide(flags_low, flags_high)? & KEEPALIVE != 0,
                idle: timer(idle, system_idle, hz),
                intvl: timer(intvl, system_intvl, hz),
                cnt: timer(cnt, system_cnt, 1),
                user_timeout: Some(number(user_timeout).cast_signed()),
                rto_max: None,
            },
            probes: number(probes),
            has_data: acknowledged != written,
            written: number(written),
            silent_ms: silent * 1000 / u64::from(hz),
        })
    }
}

/// A BPF program that records the ends of connections, and its ring buffer.
struct Recorder {
    buffer: RingBuffer,
    /// The number of records that did not fit into the buffer.
    lost: Counter,
    #[cfg_attr(not(test), expect(dead_code, reason = "closing it detaches the program"))]
    link: OwnedFd,
}

impl Recorder {
    fn start(types: &Types<'_>, event: u32, namespace: Option<u32>) -> Result<Self> {
        let bpf = |error| RING_BUFFER.error(error);
        let buffer = with_memory(|| RingBuffer::new(BUFFER, BUFFER_SIZE)).map_err(bpf)?;
        let lost = Counter(map_with(LOST, &[0; 8]).map_err(bpf)?);
        let insns = program(types, namespace, buffer.as_fd().as_raw_fd(), lost.as_raw_fd())
            .ok_or(Error::UnexpectedTypes)?;
        let program = load(Kind::Tracepoint { event }, TRACER, &insns, &RING_BUFFER)?;
        let link = sys::attach_tracepoint(program.as_fd()).map_err(bpf)?;
        Ok(Self { buffer, lost, link })
    }
}

/// Records the ends of TCP connections, from its creation until it is dropped.
pub(crate) struct Tracer {
    recorders: [Recorder; 2],
    /// The largest number of lost records at the last call of [`Tracer::take`].
    known_lost: usize,
    seen_once: SeenOnce,
    hz: u32,
}

impl Tracer {
    /// Starts to record the connections of the network namespace with this inode, or of all.
    ///
    /// # Errors
    ///
    /// Missing capabilities, a kernel that is too old or has no BTF, or the verifier's log.
    pub(crate) fn start(namespace: Option<u32>) -> Result<Self> {
        host::check_capabilities(RING_BUFFER.capabilities)?;
        let types = host::types(&TRACED).map_err(|error| match error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => RING_BUFFER.missing(),
            other => other,
        })?;
        let event = types.set_state().ok_or_else(|| RING_BUFFER.missing())?;
        let recorder = || Recorder::start(&types, event, namespace);
        Ok(Self {
            recorders: [recorder()?, recorder()?],
            known_lost: 0,
            seen_once: SeenOnce::default(),
            hz: jiffies_per_second()?,
        })
    }

    /// Returns the ends since the last call in the order of their times, and the largest possible number of ends whose
    /// records were lost because a buffer was full.
    pub(crate) fn take(&mut self) -> (Vec<TraceRecord>, usize) {
        let mut records = Vec::new();
        for recorder in &mut self.recorders {
            recorder.buffer.drain(|record| records.extend(TraceRecord::parse(record, self.hz)));
        }
        records.retain(|record| self.seen_once.is_new(record));
        records.sort_by_key(|record| record.at);
        self.seen_once.forget_before(crate::sys::monotonic_time().saturating_sub(SECOND_RECORD_WITHIN));
        let lost = self.recorders.iter().map(|recorder| recorder.lost.value()).max().unwrap_or(0);
        let before = std::mem::replace(&mut self.known_lost, lost);
        (records, lost.saturating_sub(before))
    }

    /// Returns descriptors. At least one of them is readable when there are records.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.recorders.iter().map(|recorder| recorder.buffer.as_fd())
    }
}

/// The time within which the second record of an end arrives, even if the processor was stopped between the programs.
const SECOND_RECORD_WITHIN: Duration = Duration::from_secs(60);

/// The ends of which one of the two records has arrived, with their times.
#[derive(Default)]
struct SeenOnce(HashMap<(u32, SocketAddr, SocketAddr, u32), Duration>);

impl SeenOnce {
    /// Returns whether a record is the first one of its end.
    fn is_new(&mut self, record: &TraceRecord) -> bool {
        // A socket may get its cookie between the two records. A new connection with the same addresses has other
        // sequence numbers.
        let TraceRecord { namespace, local, peer, written, at, .. } = *record;
        let end = (namespace, local, peer, written);
        let is_new = self.0.remove(&end).is_none();
        if is_new {
            self.0.insert(end, at);
        }
        is_new
    }

    /// Forgets ends that are so old that their second records are missing.
    fn forget_before(&mut self, time: Duration) {
        self.0.retain(|_, at| *at >= time);
    }
}

/// Returns the number of jiffies in a second (`CONFIG_HZ`). The kernel keeps a timeout of a socket in jiffies, and
/// rounds it up.
fn jiffies_per_second() -> io::Result<u32> {
    let (socket, _) = UnixDatagram::pair()?;
    socket.set_read_timeout(Some(Duration::from_micros(1)))?;
    let jiffy = socket.read_timeout()?.map_or(0, |time| time.as_micros());
    let hz = 1_000_000_u128.checked_div(jiffy).and_then(|hz| u32::try_from(hz).ok());
    hz.filter(|hz| *hz > 0).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use socket2::SockRef;

    use super::{COPIED, Tracer, WORDS, jiffies_per_second};
    use crate::bpf::host::{FOR_TRACING, check_capabilities};
    use crate::diag::State;

    /// Resets a connection to itself. It must have one record, with the facts that the connection's own calls report.
    #[test]
    fn a_reset_connection_is_recorded_once() {
        if check_capabilities(&FOR_TRACING).is_err() {
            // The test runner hides what println! prints.
            let _ = writeln!(io::stderr(), "SKIPPED: needs CAP_BPF and CAP_PERFMON");
            return;
        }
        assert_recorded_once(&mut Tracer::start(None).unwrap());
        // A detached program misses the end, as one that is interrupted.
        for place in [0, 1] {
            let mut tracer = Tracer::start(None).unwrap();
            tracer.recorders.get_mut(place).unwrap().link = std::fs::File::open("/dev/null").unwrap().into();
            assert_recorded_once(&mut tracer);
        }
    }

    fn assert_recorded_once(tracer: &mut Tracer) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        SockRef::from(&client).set_keepalive(true).unwrap();
        SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
        let (local, peer) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        drop(server);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let ready =
            crate::sys::poll(&tracer.descriptors().collect::<Vec<_>>(), Duration::from_secs(10)).unwrap();
        assert!(ready.contains(&true));
        let (mut records, lost) = tracer.take();
        // The second record may arrive later. Other connections of the machine may end too.
        std::thread::sleep(Duration::from_millis(100));
        records.extend(tracer.take().0);
        records.retain(|record| record.local == local);
        let [record] = &*records else { panic!("{records:?}") };
        assert_eq!((record.peer, record.errno, record.state), (peer, libc::ECONNRESET, State::Established));
        assert_eq!(record.inode, crate::sys::inode(client.as_fd()).unwrap());
        assert!(record.settings.enabled && !record.has_data && record.silent_ms < 10_000, "{record:?}");
        assert_eq!((record.probes, lost), (0, 0));
        assert_eq!(
            record.settings,
            ka_core::Settings { rto_max: None, ..crate::socket(&client).settings().unwrap() }
        );
    }

    #[test]
    fn the_fields_fill_a_record() {
        assert_eq!(COPIED.iter().map(|copied| copied.words).sum::<i16>(), WORDS);
    }

    #[test]
    fn the_kernel_has_one_of_the_usual_frequencies() {
        // 300 Hz is 3333 us.
        assert!([100, 250, 300, 1000].contains(&jiffies_per_second().unwrap()));
    }
}
