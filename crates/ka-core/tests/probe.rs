//! Tests the probe: the calls and their order on a fake kernel, and its effect on real connections. socket2 reads the
//! settings.

use std::cell::RefCell;
use std::io::Read as _;
use std::mem::offset_of;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ka_core::{Alive, Errno, Error, Kernel, Probe, SockOpt, Socket, Timer};
use libc::tcp_info;
use socket2::SockRef;

const ESTABLISHED: u8 = 1;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

/// The user timeout while a probe leaves.
const MARK: i32 = i32::MAX - 1;

/// A connection of a fake kernel. The keepalive timer never fires by itself: the test changes the state.
#[derive(Clone, Copy)]
struct Connection {
    state: u8,
    probes: u8,
    retransmits: u8,
    unacked: u32,
    silent_ms: u32,
    rtt_us: u32,
    enabled: i32,
    idle: i32,
    intvl: i32,
    cnt: i32,
    user_timeout: i32,
    has_error: bool,
    mptcp: bool,
    /// A supervisor answers 0 to each write of this option and does not make it.
    held: Option<SockOpt>,
    /// This write fails.
    refused: Option<(SockOpt, i32)>,
}

/// Keepalive is on with 60,10,5, and the last segment of the peer arrived 5 s ago.
const IDLE: Connection = Connection {
    state: ESTABLISHED,
    probes: 0,
    retransmits: 0,
    unacked: 0,
    silent_ms: 5000,
    rtt_us: 100,
    enabled: 1,
    idle: 60,
    intvl: 10,
    cnt: 5,
    user_timeout: 0,
    has_error: false,
    mptcp: false,
    held: None,
    refused: None,
};

struct Fake {
    connection: RefCell<Connection>,
    writes: RefCell<Vec<(SockOpt, i32)>>,
    cookie: u64,
}

impl Fake {
    /// Each fake socket has a cookie and thus a lock of its own, because the tests run in parallel.
    fn new(connection: Connection) -> Self {
        static COOKIES: AtomicU64 = AtomicU64::new(0);
        let cookie = COOKIES.fetch_add(1, Ordering::Relaxed);
        assert!(cookie < 64, "two tests would share a lock");
        Self { connection: RefCell::new(connection), writes: RefCell::default(), cookie }
    }

    fn probe(&self) -> Probe<'_, &Self> {
        Probe::new(Socket::with_kernel(3, self), Duration::ZERO)
    }

    fn change(&self, change: impl FnOnce(&mut Connection)) {
        change(&mut self.connection.borrow_mut());
    }

    /// Returns the writes since the last call.
    fn writes(&self) -> Vec<(SockOpt, i32)> {
        self.writes.take()
    }
}

impl Kernel for Fake {
    fn get(&self, _: i32, option: SockOpt, value: &mut [u8]) -> Result<usize, Errno> {
        let now = self.connection.borrow();
        let number = match option {
            SockOpt::Info => {
                let mut put =
                    |offset, word: u32| value[offset..offset + 4].copy_from_slice(&word.to_ne_bytes());
                put(offset_of!(tcp_info, tcpi_unacked), now.unacked);
                put(offset_of!(tcp_info, tcpi_last_ack_recv), now.silent_ms);
                put(offset_of!(tcp_info, tcpi_last_data_recv), now.silent_ms + 7);
                put(offset_of!(tcp_info, tcpi_rtt), now.rtt_us);
                value[offset_of!(tcp_info, tcpi_state)] = now.state;
                value[offset_of!(tcp_info, tcpi_probes)] = now.probes;
                value[offset_of!(tcp_info, tcpi_retransmits)] = now.retransmits;
                return Ok(value.len());
            }
            SockOpt::Cookie => {
                value.copy_from_slice(&self.cookie.to_ne_bytes());
                return Ok(8);
            }
            SockOpt::Protocol if now.mptcp => libc::IPPROTO_MPTCP,
            SockOpt::Protocol => libc::IPPROTO_TCP,
            SockOpt::Type => libc::SOCK_STREAM,
            SockOpt::KeepAlive => now.enabled,
            SockOpt::Timer(Timer::Idle) => now.idle,
            SockOpt::Timer(Timer::Intvl) => now.intvl,
            SockOpt::Timer(Timer::Cnt) => now.cnt,
            SockOpt::Timer(Timer::UserTimeout) if !now.mptcp => now.user_timeout,
            SockOpt::Timer(Timer::RtoMax) => 120_000,
            _ => return Err(Errno(libc::EOPNOTSUPP)),
        };
        value.copy_from_slice(&number.to_ne_bytes());
        Ok(4)
    }

    fn set(&self, _: i32, option: SockOpt, value: i32) -> Result<(), Errno> {
        self.writes.borrow_mut().push((option, value));
        let mut now = self.connection.borrow_mut();
        if now.refused == Some((option, value)) {
            return Err(Errno(libc::EPERM));
        }
        if now.held == Some(option) {
            return Ok(());
        }
        *match option {
            SockOpt::KeepAlive => &mut now.enabled,
            SockOpt::Timer(Timer::Idle) => &mut now.idle,
            SockOpt::Timer(Timer::Cnt) => &mut now.cnt,
            SockOpt::Timer(Timer::UserTimeout) => &mut now.user_timeout,
            other => panic!("{other} is written"),
        } = value;
        Ok(())
    }

    fn retries(&self) -> u8 {
        15
    }

    fn has_error(&self, _: i32) -> bool {
        self.connection.borrow().has_error
    }
}

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn idle(seconds: i32) -> (SockOpt, i32) {
    (SockOpt::Timer(Timer::Idle), seconds)
}

fn user_timeout(milliseconds: i32) -> (SockOpt, i32) {
    (SockOpt::Timer(Timer::UserTimeout), milliseconds)
}

fn cnt(probes: i32) -> (SockOpt, i32) {
    (SockOpt::Timer(Timer::Cnt), probes)
}

fn keepalive(value: i32) -> (SockOpt, i32) {
    (SockOpt::KeepAlive, value)
}

#[test]
fn settings_are_put_back_as_soon_as_the_probe_has_left() {
    let fake = Fake::new(IDLE);
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(1)]);
    assert_eq!((probe.step(ms(1)), probe.is_leaving(), fake.writes()), (Ok(None), true, vec![]));
    fake.change(|now| now.probes = 1);
    assert_eq!((probe.step(ms(4)), probe.is_leaving()), (Ok(None), false));
    assert_eq!(fake.writes(), [idle(60), user_timeout(0)]);
    fake.change(|now| now.silent_ms = 5200);
    assert_eq!(probe.step(ms(200)), Ok(None));
    fake.change(|now| now.silent_ms = 1);
    assert_eq!(probe.step(ms(304)), Ok(Some(Alive::Answered(ms(300)))));
    assert_eq!(fake.writes(), []);
}

#[test]
fn an_answer_at_once_puts_the_settings_back() {
    let fake = Fake::new(IDLE);
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    assert_eq!(probe.step(ms(2)), Ok(None));
    fake.change(|now| now.silent_ms = 0);
    assert_eq!(probe.step(ms(3)), Ok(Some(Alive::Answered(ms(1)))));
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(1), idle(60), user_timeout(0)]);
}

/// If the caller is stopped for longer than the silence before the probe, the time since the last segment is longer
/// than before, although the peer has answered.
#[test]
fn an_answer_during_a_stop_of_the_caller_is_found() {
    for (now_ms, silent_ms) in [(4000, 3994), (1_000_000, 1_000_000), (4000, 4499)] {
        let fake = Fake::new(Connection { silent_ms: 1200, ..IDLE });
        let mut probe = fake.probe();
        assert_eq!((probe.step(ms(0)), probe.is_leaving()), (Ok(None), true));
        fake.change(|now| (now.probes, now.silent_ms) = (1, 1204));
        assert_eq!((probe.step(ms(4)), probe.is_leaving()), (Ok(None), false));
        fake.change(|now| (now.probes, now.silent_ms) = (0, silent_ms));
        assert_eq!(probe.step(ms(now_ms)), Ok(Some(Alive::Answered(ms(now_ms - 4)))));
        assert_eq!(fake.writes(), [user_timeout(MARK), idle(1), idle(60), user_timeout(0)]);
    }
}

#[test]
fn silence_during_a_stop_of_the_caller_is_no_answer() {
    let fake = Fake::new(Connection { silent_ms: 1000, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    // The kernel counts in ticks of up to 10 ms.
    for (now_ms, silent_ms) in [(4, 1000), (4000, 4990), (900_000, 900_500)] {
        fake.change(|now| now.silent_ms = silent_ms);
        assert_eq!(probe.step(ms(now_ms)), Ok(None), "{now_ms}");
    }
}

#[test]
fn a_dropped_probe_puts_the_settings_back() {
    let fake = Fake::new(Connection { user_timeout: 7000, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    drop(probe);
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(1), idle(60), user_timeout(7000)]);
}

#[test]
fn keepalive_that_was_off_goes_off_before_the_idle_time_is_put_back() {
    let fake = Fake::new(Connection { enabled: 0, idle: 7200, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    assert_eq!(fake.writes(), [user_timeout(MARK), keepalive(1), idle(1)]);
    fake.change(|now| now.probes = 1);
    assert_eq!(probe.step(ms(4)), Ok(None));
    assert_eq!(fake.writes(), [keepalive(0), idle(7200), user_timeout(0)]);
}

#[test]
fn a_recent_segment_needs_no_probe_and_no_write() {
    let fake = Fake::new(Connection { silent_ms: 999, ..IDLE });
    assert_eq!(fake.probe().step(ms(0)), Ok(Some(Alive::Recently)));
    assert_eq!(fake.writes(), []);
}

#[test]
fn data_in_flight_needs_no_probe_and_its_acknowledgement_is_the_answer() {
    let fake = Fake::new(Connection { unacked: 1, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    fake.change(|now| now.silent_ms = 3);
    assert_eq!(probe.step(ms(9)), Ok(Some(Alive::Answered(ms(9)))));
    assert_eq!(fake.writes(), []);
}

#[test]
fn data_sent_while_the_probe_leaves_puts_the_settings_back() {
    let fake = Fake::new(IDLE);
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    fake.change(|now| now.unacked = 1);
    assert_eq!(probe.step(ms(1)), Ok(None));
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(1), idle(60), user_timeout(0)]);
}

#[test]
fn a_probe_that_does_not_leave_is_given_up_after_200_ms() {
    let fake = Fake::new(IDLE);
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    assert_eq!((probe.step(ms(199)), probe.is_leaving()), (Ok(None), true));
    assert_eq!((probe.step(ms(200)), probe.is_leaving()), (Ok(None), false));
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(1), idle(60), user_timeout(0)]);
}

/// While keepalive is probing, the idle time has passed. A lower value would have to be put back, and this write would
/// make the timer fire a second time.
#[test]
fn a_connection_that_keepalive_probes_is_triggered_by_its_own_idle_time() {
    let fake = Fake::new(Connection { probes: 2, silent_ms: 75_000, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    fake.change(|now| now.probes = 3);
    assert_eq!(probe.step(ms(4)), Ok(None));
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(60), user_timeout(0)]);
}

#[test]
fn the_probe_of_the_kernel_is_awaited_if_it_is_near() {
    let fake = Fake::new(Connection { silent_ms: 59_850, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!((probe.step(ms(0)), fake.writes()), (Ok(None), vec![]));
    fake.change(|now| now.silent_ms = 60_050);
    assert_eq!((probe.step(ms(200)), fake.writes()), (Ok(None), vec![user_timeout(MARK), idle(60)]));
}

/// Otherwise calls that repeat faster than the interval would keep a dead connection alive.
#[test]
fn a_connection_that_keepalive_is_due_to_end_is_not_protected() {
    let overdue = [
        Connection { probes: 5, silent_ms: 110_000, ..IDLE },
        Connection { probes: 1, silent_ms: 70_000, user_timeout: 70_000, ..IDLE },
    ];
    for connection in overdue {
        let fake = Fake::new(connection);
        assert_eq!(fake.probe().step(ms(0)), Ok(None));
        assert_eq!(fake.writes(), [idle(60)]);
    }
    // 10 ms earlier, it is protected.
    let fake = Fake::new(Connection { probes: 5, silent_ms: 109_990, ..IDLE });
    assert_eq!(fake.probe().step(ms(0)), Ok(None));
    assert_eq!(fake.writes()[..2], [user_timeout(MARK), idle(60)]);
}

#[test]
fn multipath_tcp_is_protected_by_the_count() {
    let fake = Fake::new(Connection { mptcp: true, cnt: 1, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    drop(probe);
    assert_eq!(fake.writes(), [cnt(127), idle(1), idle(60), cnt(1)]);
}

#[test]
fn an_idle_time_that_cannot_be_put_back_is_not_changed() {
    let fake = Fake::new(Connection { enabled: 0, idle: 86_400, ..IDLE });
    assert_eq!(fake.probe().step(ms(0)), Err(Error::IdleNotRestorable { idle: 86_400 }));
    assert_eq!(fake.writes(), []);
}

#[test]
fn held_settings_are_reported_and_put_back() {
    let held = Some(SockOpt::Timer(Timer::Idle));
    let fake = Fake::new(Connection { held, ..IDLE });
    assert_eq!(fake.probe().step(ms(0)), Err(Error::PolicyHeld));
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(1), idle(60), user_timeout(0)]);
}

/// A policy may hold the user timeout, and let the program lower the idle time.
#[test]
fn a_held_user_timeout_is_needed_only_if_probes_are_unanswered() {
    let held = Some(SockOpt::Timer(Timer::UserTimeout));
    let fake = Fake::new(Connection { held, user_timeout: 9000, ..IDLE });
    assert_eq!(fake.probe().step(ms(0)), Ok(None));
    assert_eq!(fake.writes()[..2], [user_timeout(MARK), idle(1)]);
    let fake = Fake::new(Connection { held, user_timeout: 9000, probes: 1, ..IDLE });
    assert_eq!(fake.probe().step(ms(0)), Err(Error::PolicyHeld));
    assert_eq!(fake.writes(), [user_timeout(MARK), user_timeout(9000)]);
    // The idle time has just expired. The trigger writes the same value again, so its success shows nothing.
    let fake = Fake::new(Connection { held, user_timeout: 9000, silent_ms: 60_000, ..IDLE });
    assert_eq!(fake.probe().step(ms(0)), Err(Error::PolicyHeld));
    assert_eq!(fake.writes(), [user_timeout(MARK), user_timeout(9000)]);
}

#[test]
fn a_refused_write_undoes_the_writes_before_it() {
    let refused = Some(idle(1));
    let fake = Fake::new(Connection { refused, enabled: 0, ..IDLE });
    let option = SockOpt::Timer(Timer::Idle);
    assert_eq!(fake.probe().step(ms(0)), Err(Error::System { option, errno: Errno(libc::EPERM) }));
    let now = *fake.connection.borrow();
    assert_eq!((now.enabled, now.idle, now.user_timeout), (0, 60, 0));
}

#[test]
fn a_second_probe_of_the_same_socket_waits_until_the_first_has_left() {
    let fake = Fake::new(IDLE);
    let (mut first, mut second) = (fake.probe(), fake.probe());
    assert_eq!((first.step(ms(0)), second.step(ms(0))), (Ok(None), Ok(None)));
    assert!(first.is_leaving() && second.is_untriggered());
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(1)]);
    fake.change(|now| now.probes = 1);
    assert_eq!(first.step(ms(4)), Ok(None));
    assert_eq!(second.step(ms(4)), Ok(None));
    assert_eq!(fake.writes(), [idle(60), user_timeout(0), user_timeout(MARK), idle(1)]);
    fake.change(|now| now.silent_ms = 0);
    assert!(matches!((first.step(ms(5)), second.step(ms(5))), (Ok(Some(_)), Ok(Some(_)))));
    assert_eq!(fake.connection.borrow().idle, 60);
}

/// Multipath TCP has no user timeout that shows that a probe is leaving.
#[test]
fn a_second_probe_of_a_multipath_tcp_socket_waits_too() {
    let fake = Fake::new(Connection { mptcp: true, ..IDLE });
    let (mut first, mut second) = (fake.probe(), fake.probe());
    assert_eq!(first.step(ms(0)), Ok(None));
    // A failed attempt must not release the lock.
    for now in 0..3 {
        assert_eq!((second.step(ms(now)), second.is_untriggered()), (Ok(None), true));
    }
    assert_eq!(fake.writes(), [cnt(127), idle(1)]);
    fake.change(|now| now.probes = 1);
    assert_eq!((first.step(ms(4)), second.step(ms(4))), (Ok(None), Ok(None)));
    assert_eq!(fake.writes(), [idle(60), cnt(5), cnt(127), idle(1)]);
}

#[test]
fn the_probe_of_another_process_is_recognized_by_the_user_timeout() {
    let fake = Fake::new(Connection { user_timeout: MARK, idle: 1, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!((probe.step(ms(0)), fake.writes()), (Ok(None), vec![]));
    fake.change(|now| (now.user_timeout, now.idle) = (0, 60));
    assert_eq!((probe.step(ms(3)), fake.writes()), (Ok(None), vec![user_timeout(MARK), idle(1)]));
}

#[test]
fn sockets_without_a_connection_are_not_connected() {
    let closed = Connection { state: CLOSE, ..IDLE };
    let unconnected = [
        Connection { state: LISTEN, ..IDLE },
        Connection { state: 2, ..IDLE },                     // SYN-SENT
        closed,                                              // its error was read
        Connection { has_error: true, rtt_us: 0, ..closed }, // connect(2) failed
    ];
    for connection in unconnected {
        let fake = Fake::new(connection);
        assert_eq!((fake.probe().step(ms(0)), fake.writes()), (Err(Error::NotConnected), vec![]));
    }
}

#[test]
fn the_error_of_a_dead_connection_is_derived_from_its_state() {
    let dead = Connection { state: CLOSE, has_error: true, ..IDLE };
    let expected = [
        (dead, libc::ECONNRESET),
        // The first of five probes was answered by a reset.
        (Connection { probes: 1, silent_ms: 200_000, ..dead }, libc::ECONNRESET),
        (Connection { probes: 5, silent_ms: 110_000, ..dead }, libc::ETIMEDOUT),
        // The only probe was answered by a reset, or not at all.
        (Connection { probes: 1, cnt: 1, silent_ms: 69_999, ..dead }, libc::ECONNRESET),
        (Connection { probes: 1, cnt: 1, silent_ms: 70_000, ..dead }, libc::ETIMEDOUT),
        // Earlier calls sent the other probe.
        (Connection { probes: 2, cnt: 1, silent_ms: 60_000, ..dead }, libc::ETIMEDOUT),
        (Connection { probes: 1, user_timeout: 80_000, silent_ms: 79_999, ..dead }, libc::ECONNRESET),
        (Connection { probes: 1, user_timeout: 80_000, silent_ms: 80_000, ..dead }, libc::ETIMEDOUT),
        (Connection { retransmits: 3, silent_ms: 924_599, ..dead }, libc::ECONNRESET),
        (Connection { retransmits: 15, silent_ms: 924_600, ..dead }, libc::ETIMEDOUT),
        (Connection { retransmits: 5, user_timeout: 9000, silent_ms: 9000, ..dead }, libc::ETIMEDOUT),
        (Connection { enabled: 0, probes: 9, silent_ms: 999_999, ..dead }, libc::ECONNRESET),
    ];
    for (connection, errno) in expected {
        let fake = Fake::new(connection);
        assert_eq!(fake.probe().step(ms(0)), Err(Error::Ended(Errno(errno))));
    }
}

#[test]
fn a_reset_ends_the_wait_and_puts_the_settings_back() {
    for (state, errno) in [(ESTABLISHED, libc::ECONNRESET), (CLOSE_WAIT, libc::EPIPE)] {
        let fake = Fake::new(Connection { state, ..IDLE });
        let mut probe = fake.probe();
        assert_eq!(probe.step(ms(0)), Ok(None));
        fake.change(|now| (now.state, now.has_error) = (CLOSE, true));
        assert_eq!(probe.step(ms(1)), Err(Error::Ended(Errno(errno))));
        assert_eq!(fake.writes(), [user_timeout(MARK), idle(1), idle(60), user_timeout(0)]);
    }
}

/// The kernel can end the connection after the probe has read the state and before it changes the settings.
#[test]
fn the_error_of_a_connection_that_has_just_timed_out_depends_on_its_own_settings() {
    let fake = Fake::new(Connection { cnt: 3, probes: 3, silent_ms: 60_100, ..IDLE });
    let mut probe = fake.probe();
    assert_eq!(probe.step(ms(0)), Ok(None));
    fake.change(|now| (now.state, now.has_error) = (CLOSE, true));
    assert_eq!(probe.step(ms(1)), Err(Error::Ended(Errno(libc::ETIMEDOUT))));
    assert_eq!(fake.writes(), [user_timeout(MARK), idle(60), user_timeout(0)]);
}

/// Returns both ends of a connection that has been idle for more than a second.
fn idle_connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    thread::sleep(ms(1100));
    (client, server)
}

/// Returns the settings that a probe changes for a moment.
fn settings(stream: &TcpStream) -> (bool, Duration, u32, Option<Duration>) {
    let socket = SockRef::from(stream);
    (
        socket.keepalive().unwrap(),
        socket.tcp_keepalive_time().unwrap(),
        socket.tcp_keepalive_retries().unwrap(),
        socket.tcp_user_timeout().unwrap(),
    )
}

#[test]
fn a_live_peer_answers_and_the_settings_stay() {
    let (client, server) = idle_connection();
    let socket = SockRef::from(&server);
    socket.set_keepalive(true).unwrap();
    let policy = socket2::TcpKeepalive::new().with_time(Duration::from_secs(77)).with_retries(1);
    socket.set_tcp_keepalive(&policy).unwrap();
    socket.set_tcp_user_timeout(Some(ms(88_000))).unwrap();
    for stream in [&client, &server] {
        let before = settings(stream);
        assert_eq!(Socket::new(stream.as_raw_fd()).probe(Duration::ZERO), Ok(None));
        thread::sleep(ms(1100)); // The probe of the other end has restarted the idle time.
        let answer = Socket::new(stream.as_raw_fd()).probe(Duration::from_secs(10));
        assert!(matches!(answer, Ok(Some(Alive::Answered(_)))), "{answer:?}");
        assert_eq!(settings(stream), before);
        let again = Socket::new(stream.as_raw_fd()).probe(Duration::ZERO);
        assert_eq!(again, Ok(Some(Alive::Recently)));
    }
}

#[test]
fn many_threads_can_probe_one_socket() {
    let (client, _server) = idle_connection();
    let before = settings(&client);
    thread::scope(|scope| {
        let probe = || Socket::new(client.as_raw_fd()).probe(Duration::from_secs(10));
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(probe)).collect();
        for thread in threads {
            assert!(matches!(thread.join().unwrap(), Ok(Some(_))));
        }
    });
    assert_eq!(settings(&client), before);
}

#[test]
fn a_reset_connection_keeps_its_error() {
    let (mut client, server) = idle_connection();
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let socket = Socket::new(client.as_raw_fd());
    for _ in 0..2 {
        assert_eq!(socket.probe(Duration::from_secs(1)), Err(Error::Ended(Errno(libc::ECONNRESET))));
    }
    assert_eq!(client.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
    assert_eq!(socket.probe(Duration::from_secs(1)), Err(Error::NotConnected));
}
