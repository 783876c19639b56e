//! The programs at the two ends, and connections of our own.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ka_test::child::preloaded;
use ka_test::example::example;
use ka_test::libka::{CONFIG_INIT, call, enable};
use ka_test::socket::set_option;

use crate::network::{Family, Network, PORT};
use crate::story::now;

/// Idle, interval, count.
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

    /// Seconds until a silent peer is dead, if timers were exact.
    pub fn seconds(self) -> f64 {
        f64::from(self.idle + self.intvl * self.cnt)
    }

    /// Turns keepalive on by libka.
    pub fn enable(self, socket: &impl AsRawFd) {
        enable(socket.as_raw_fd(), self.idle, self.intvl, self.cnt).unwrap();
    }

    /// The four calls that programs make, in the order in which they make them.
    pub fn set_by_hand(self, socket: &TcpStream) {
        let fd = socket.as_raw_fd();
        set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, self.idle);
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, self.intvl);
        set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, self.cnt);
    }

    /// What `ka_plan_path` says of a path that forgets after this long.
    pub fn planned(path: Duration) -> Self {
        let mut config = CONFIG_INIT;
        let seconds = path.as_secs().try_into().unwrap();
        // SAFETY: the config has the size that it says.
        call(|ka| unsafe { (ka.ka_plan_path)(seconds, &raw mut config) }).unwrap();
        Self::new(config[2], config[3], config[4])
    }
}

/// Seconds by which a kernel timer may be late: an eighth of the time, and what a busy machine adds.
pub fn late(seconds: f64) -> f64 {
    seconds / 8.0 + 1.0
}

/// A program that tells its story in lines.
pub struct Program {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<(f64, String)>,
}

impl Program {
    pub fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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

    /// Waits for a line that has one of these words, and gives when it came.
    pub fn line(&self, words: &[&str], within: f64) -> Option<(f64, String)> {
        let until = Instant::now() + Duration::from_secs_f64(within);
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok((time, line)) if words.iter().any(|word| line.contains(word)) => {
                    return Some((time, line));
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => panic!("a program ended and had not said {words:?}"),
            }
        }
    }

    /// Waits until it is connected.
    pub fn connected(self) -> Self {
        assert!(self.line(&["connected"], 20.0).is_some(), "a program did not connect");
        self
    }

    /// How its connection ended: the errno's name, or the end of file.
    pub fn ending(&self, within: f64) -> Option<(f64, String)> {
        const ENDINGS: [&str; 5] = ["ETIMEDOUT", "EHOSTUNREACH", "ENETUNREACH", "ECONNRESET", "closed"];
        let (time, line) = self.line(&ENDINGS, within)?;
        Some((time, (*ENDINGS.iter().find(|ending| line.contains(**ending)).unwrap()).to_owned()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: a signal to our own child, which was not waited for.
        unsafe { libc::kill(self.child.id().try_into().unwrap(), signal) };
    }

    /// Whether it is stopped. proc_pid_stat(5)
    pub fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// Gives it a line.
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

/// A program that uses libka: the client in C.
pub fn libka_client(network: &Network, family: Family, policy: Policy) -> Program {
    let Policy { idle, intvl, cnt } = policy;
    let address = SocketAddr::new(network.host(family), PORT);
    let mut command = network.client.command(example("tcp_keepalive_client"));
    command.args(["-d", &idle.to_string(), "-i", &intvl.to_string(), "-c", &cnt.to_string()]);
    Program::start(command.arg(address.to_string())).connected()
}

/// A program that knows nothing of keepalive and says how its connection ended.
pub fn plain_client(network: &Network, family: Family, mut command: Command) -> Program {
    const SCRIPT: &str = "
import errno, socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print('connected', flush=True)
try:
    while True:
        said = connection.recv(100)
        if not said:
            print('closed')
            break
        print('heard', said.decode().strip(), flush=True)
except OSError as error:
    print(errno.errorcode[error.errno])
";
    network.client.moves(&mut command);
    command.args(["-c", SCRIPT, &network.host(family).to_string(), &PORT.to_string()]);
    Program::start(&mut command).connected()
}

/// The same under the shim.
pub fn preloaded_client(network: &Network, family: Family, policy: Policy) -> Program {
    let Policy { idle, intvl, cnt } = policy;
    let mut command = preloaded("python3");
    command.env("KA_POLICY", format!("{idle},{intvl},{cnt}"));
    plain_client(network, family, command)
}

/// What tells this program that it is a peer.
pub const PEER: &str = "KA_LAB_PEER";

/// A server on a machine that can be killed and frozen: this program again.
pub fn peer(network: &Network) -> Program {
    let mut command = network.server.command(std::env::current_exe().unwrap());
    let program = Program::start(command.env(PEER, "1"));
    assert!(program.line(&["listening"], 20.0).is_some(), "no peer");
    program
}

/// The peer: accepts connections, says so, holds them, and says on all what it is told on standard input.
pub fn be_peer() -> ! {
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

/// Waits for a connection to end, and says when and how.
pub fn ending(connection: &TcpStream, within: f64) -> Option<(f64, String)> {
    connection.set_read_timeout(Some(Duration::from_secs_f64(within))).unwrap();
    let mut byte = [0];
    let result = (&*connection).read(&mut byte);
    let time = now();
    match result {
        Ok(0) => Some((time, "closed".to_owned())),
        Ok(_) => panic!("unexpected data"),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => Some((time, errno_name(&error))),
    }
}

/// Whether a connection has neither ended nor brought anything.
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

/// Whether a word goes one way and comes back the other within a time.
pub fn talks(from: &TcpStream, to: &TcpStream, within: f64) -> bool {
    let passes = |from: &TcpStream, to: &TcpStream| {
        to.set_read_timeout(Some(Duration::from_secs_f64(within))).unwrap();
        let mut byte = [0];
        (&*from).write_all(b"!").is_ok() && matches!((&*to).read(&mut byte), Ok(1))
    };
    passes(from, to) && passes(to, from)
}
