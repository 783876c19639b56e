//! The programs at the two ends, and connections that the lab makes itself.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ka_test::child::preloaded;
use ka_test::example::example;
use ka_test::libka::{CONFIG_INIT, call, enable};
use ka_test::process::{signal_child, state};
use ka_test::socket::set_option;

use crate::network::{Family, Machine, Network, PORT, PROXY_PORT};
use crate::story::now;

/// The idle time, the interval and the count of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub idle: i32,
    pub intvl: i32,
    pub cnt: i32,
}

impl Policy {
    pub const fn new(idle: i32, intvl: i32, cnt: i32) -> Self {
        Self { idle, intvl, cnt }
    }

    pub fn name(self) -> String {
        format!("{}/{}/{}", self.idle, self.intvl, self.cnt)
    }

    /// Returns the seconds until a dead peer is found, if no timer is late.
    pub fn seconds(self) -> f64 {
        f64::from(self.idle + self.intvl * self.cnt)
    }

    /// Turns keepalive on with libka.
    pub fn enable(self, socket: &impl AsRawFd) {
        enable(socket.as_raw_fd(), self.idle, self.intvl, self.cnt).unwrap();
    }

    /// Makes the four calls of setsockopt(2) in the order of typical programs.
    pub fn set_by_hand(self, socket: &TcpStream) {
        let fd = socket.as_raw_fd();
        set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, self.idle);
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, self.intvl);
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, self.cnt);
    }

    /// Returns the policy of `ka_plan_path` for a path that drops connections after this idle time.
    pub fn planned(path: Duration) -> Self {
        let mut config = CONFIG_INIT;
        let seconds = path.as_secs().try_into().unwrap();
        // SAFETY: the config has its size.
        call(|ka| unsafe { (ka.ka_plan_path)(seconds, &raw mut config) }).unwrap();
        Self::new(config[2], config[3], config[4])
    }
}

/// Returns the seconds by which a kernel timer may be late: an eighth of its time, plus a delay for a busy machine.
pub fn late(seconds: f64) -> f64 {
    seconds / 8.0 + 1.0
}

/// A program that prints events as lines.
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(f64, String)>,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        Self::of(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Reads the output of a child, whose standard output and standard error must be pipes.
    pub fn of(mut child: Child) -> Self {
        let (sender, lines) = mpsc::channel();
        let stdin = child.stdin.take();
        let streams: [Box<dyn io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(stream).lines() {
                    let Ok(line) = line else { return };
                    let _ = sender.send((now(), line));
                }
            });
        }
        Self { child, stdin, lines }
    }

    /// Waits for a line with one of these words. Returns its time and the line.
    pub fn line(&self, words: &[&str], within: f64) -> Option<(f64, String)> {
        let until = Instant::now() + Duration::from_secs_f64(within);
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((time, line)) if words.iter().any(|word| line.contains(word)) => {
                    return Some((time, line));
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("a program ended without printing {words:?}"),
            }
        }
    }

    /// Waits until the program is connected.
    pub fn connected(self) -> Self {
        assert!(self.line(&["connected"], 20.0).is_some(), "a program did not connect");
        self
    }

    /// Returns when and how the program's connection ended: the name of the errno, or "closed".
    pub fn ending(&self, within: f64) -> Option<(f64, String)> {
        const ENDINGS: [&str; 5] = ["ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ECONNRESET", "closed"];
        let (time, line) = self.line(&ENDINGS, within)?;
        Some((time, (*ENDINGS.iter().find(|ending| line.contains(**ending)).unwrap()).to_owned()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        signal_child(&self.child, signal);
    }

    /// Ends the program by SIGTERM, after which its exit status must be 0. Returns the lines that were not taken.
    pub fn end(mut self) -> Vec<String> {
        self.signal(libc::SIGTERM);
        let lines = self.lines.iter().map(|(_, line)| line).collect();
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {lines:?}");
        lines
    }

    /// Returns whether a signal has stopped the program.
    pub fn is_stopped(&self) -> bool {
        state(self.child.id().try_into().unwrap()) == Some('T')
    }

    /// Writes a line to the program's standard input.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the C client, which uses libka.
pub fn libka_client(network: &Network, family: Family, policy: Policy) -> Program {
    let Policy { idle, intvl, cnt } = policy;
    let address = SocketAddr::new(network.host(family), PORT);
    let mut command = network.client.command(example("tcp_keepalive_client"));
    command.args(["-d", &idle.to_string(), "-i", &intvl.to_string(), "-c", &cnt.to_string()]);
    Program::start(command.arg(address.to_string())).connected()
}

/// Starts a program that does not use keepalive, and prints how its connection ended.
pub fn plain_client(network: &Network, family: Family, command: Command) -> Program {
    const SCRIPT: &str = "
import errno, socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print('connected', flush=True)
try:
    while True:
        data = connection.recv(100)
        if not data:
            print('closed')
            break
        print('heard', data.decode().strip(), flush=True)
except OSError as error:
    print(errno.errorcode[error.errno])
";
    run_script(network, family, command, SCRIPT).connected()
}

/// Runs a script on the client. `command` is the interpreter. The arguments of the script are the server's address and
/// port.
pub fn run_script(network: &Network, family: Family, mut command: Command, script: &str) -> Program {
    network.client.moves(&mut command);
    command.args(["-c", script, &network.host(family).to_string(), &PORT.to_string()]);
    Program::start(&mut command)
}

/// Starts the same program under the shim.
pub fn preloaded_client(network: &Network, family: Family, policy: Policy) -> Program {
    let Policy { idle, intvl, cnt } = policy;
    let mut command = preloaded("python3");
    command.env("KA_POLICY", format!("{idle},{intvl},{cnt}"));
    plain_client(network, family, command)
}

/// The variable that makes this program a peer: `server`, `closing` with a number of seconds, or `proxy` with the
/// addresses of the server.
pub const PEER: &str = "KA_LAB_PEER";

/// Starts this program again as a server, which can be killed and frozen.
pub fn peer(network: &Network) -> Program {
    start_peer(&network.server, "server")
}

/// Starts this program again as a server that closes each connection after this time.
pub fn closing_peer(network: &Network, after: Duration) -> Program {
    start_peer(&network.server, &format!("closing {}", after.as_secs_f64()))
}

/// Starts this program again as the proxy on the router of `Network::with_proxy`.
pub fn proxy(network: &Network) -> Program {
    let [v4, v6] = [Family::V4, Family::V6].map(|family| network.host(family));
    start_peer(&network.router, &format!("proxy {v4} {v6}"))
}

fn start_peer(machine: &Machine, role: &str) -> Program {
    let mut command = machine.command(std::env::current_exe().unwrap());
    let program = Program::start(command.env(PEER, role));
    assert!(program.line(&["listening"], 20.0).is_some(), "no {role}");
    program
}

/// Runs the peer in this role.
pub fn run_peer(role: &str) -> ! {
    let mut words = role.split(' ');
    match words.next() {
        Some("server") => run_server(),
        Some("closing") => run_closing_server(words.next().unwrap().parse().unwrap()),
        Some("proxy") => run_proxy(&words.map(|word| word.parse().unwrap()).collect::<Vec<_>>()),
        _ => panic!("{role}"),
    }
}

/// Accepts connections, prints a line for each, and keeps them. Sends each line of its standard input on all
/// connections.
fn run_server() -> ! {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    println!("listening");
    let taken = Arc::new(Mutex::new(vec![]));
    let connections = Arc::clone(&taken);
    thread::spawn(move || {
        for connection in listener.incoming() {
            connections.lock().unwrap().push(connection.unwrap());
            println!("accepted");
        }
    });
    for line in io::stdin().lines() {
        for connection in taken.lock().unwrap().iter_mut() {
            let _ = writeln!(connection, "{}", line.as_ref().unwrap());
        }
    }
    std::process::exit(0);
}

/// Accepts connections, and closes each after this number of seconds.
fn run_closing_server(seconds: f64) -> ! {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    println!("listening");
    loop {
        let connection = listener.accept().unwrap();
        thread::spawn(move || {
            thread::sleep(Duration::from_secs_f64(seconds));
            drop(connection);
        });
    }
}

/// Accepts connections, makes one to the server for each, and copies the data between both. `servers` are the server's
/// addresses, one for each family.
fn run_proxy(servers: &[IpAddr]) -> ! {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PROXY_PORT)).unwrap();
    println!("listening");
    loop {
        let (near, client) = listener.accept().unwrap();
        let is_v4 = client.ip().to_canonical().is_ipv4();
        let server = servers.iter().find(|server| server.is_ipv4() == is_v4).unwrap();
        let far = TcpStream::connect((*server, PORT)).unwrap();
        for [mut from, mut to] in
            [[&near, &far], [&far, &near]].map(|ends| ends.map(|end| end.try_clone().unwrap()))
        {
            thread::spawn(move || {
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    }
}

/// Reads at most one byte within this time. Fails with `WouldBlock` if none arrives.
fn read_byte(mut connection: &TcpStream, within: f64) -> io::Result<usize> {
    let until = now() + within;
    loop {
        let left = Duration::from_secs_f64((until - now()).max(0.001));
        connection.set_read_timeout(Some(left)).unwrap();
        match connection.read(&mut [0]) {
            // The kernel does not restart a read with a timeout. signal(7)
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Waits for a connection to end. Returns when and how it ended.
pub fn ending(connection: &TcpStream, within: f64) -> Option<(f64, String)> {
    let result = read_byte(connection, within);
    let time = now();
    match result {
        Ok(0) => Some((time, "closed".to_owned())),
        Ok(_) => panic!("unexpected data"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some((time, errno_name(&error))),
    }
}

/// Returns whether a connection is open and has no data to read.
pub fn is_open(connection: &TcpStream) -> bool {
    connection.set_nonblocking(true).unwrap();
    let result = connection.peek(&mut [0]);
    connection.set_nonblocking(false).unwrap();
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn errno_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ETIMEDOUT) => "ETIMEDOUT".to_owned(),
        Some(libc::ECONNRESET) => "ECONNRESET".to_owned(),
        Some(libc::EHOSTUNREACH) => "EHOSTUNREACH".to_owned(),
        Some(libc::EPIPE) => "EPIPE".to_owned(),
        _ => error.to_string(),
    }
}

/// Returns whether data goes from one end to the other and back within this time.
pub fn talks(from: &TcpStream, to: &TcpStream, within: f64) -> bool {
    let passes = |from: &TcpStream, to: &TcpStream| {
        (&*from).write_all(b"!").is_ok() && matches!(read_byte(to, within), Ok(1))
    };
    passes(from, to) && passes(to, from)
}

/// Exchanges data until the kernel expects a short round trip. The handshake on a busy machine can take seconds, and
/// the first retransmission then comes after three times as long.
pub fn settle(client: &TcpStream, server: &TcpStream) {
    const EXCHANGES: usize = 200;
    /// `TCP_RTO_MIN`, and a tenth, in microseconds.
    const SHORT: u32 = 220_000;
    let is_settled = || info_word(client, offset_of!(libc::tcp_info, tcpi_rto)) <= SHORT;
    assert!(
        (0..EXCHANGES).any(|_| is_settled() || !talks(client, server, 10.0)),
        "the round trips stay long"
    );
    assert!(is_settled(), "the connection is dead");
}

/// Returns a word of `struct tcp_info`.
pub fn info_word(socket: &TcpStream, offset: usize) -> u32 {
    let mut info = [0_u8; 232];
    let mut size = info.len().try_into().unwrap();
    // SAFETY: the size is that of the buffer.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    assert!(result == 0 && usize::try_from(size).unwrap() >= offset + 4, "the kernel has no such field");
    u32::from_ne_bytes(info[offset..offset + 4].try_into().unwrap())
}

/// Writes until the buffers are full, because the peer does not read.
pub fn fill(mut socket: &TcpStream) -> usize {
    socket.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut written = 0;
    while let Ok(size) = socket.write(&[0; 4096]) {
        written += size;
    }
    written
}
