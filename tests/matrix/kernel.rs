//! What the kernel says of the connections of this network: by ss(8), which shows everybody the timer that runs, and by
//! getsockopt(2) on a duplicate of each process's descriptor (pidfd_getfd(2)). Nothing of ka's is asked.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::Command;
use std::str::FromStr;

use ka_test::child::stdout;
use ka_test::socket::{keepalive_options, option};

/// One end of an established connection.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// The process that has it, or one of them.
    pub comm: String,
    local: SocketAddr,
    peer: SocketAddr,
    pub on: bool,
    /// idle, intvl, cnt
    pub values: [i32; 3],
    /// What ss shows of its timer.
    timer: String,
}

impl End {
    pub fn is_at(&self, port: u16) -> bool {
        self.local.port() == port || self.peer.port() == port
    }

    /// Whether ss shows a keepalive timer that runs.
    pub fn is_armed(&self) -> bool {
        self.timer.starts_with("timer:(keepalive,")
    }

    pub fn is_server_of(&self, port: u16) -> bool {
        self.local.port() == port
    }
}

impl fmt::Display for End {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { comm, local, peer, on, values: [idle, intvl, cnt], timer } = self;
        write!(text, "{local} {peer} {on} {idle} {intvl} {cnt} {timer} {comm}")
    }
}

impl FromStr for End {
    type Err = Box<dyn Error>;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let [local, peer, on, idle, intvl, cnt, timer, comm] =
            line.splitn(8, ' ').collect::<Vec<_>>().try_into().map_err(|_| line)?;
        Ok(Self {
            comm: comm.to_owned(),
            local: local.parse()?,
            peer: peer.parse()?,
            on: on.parse()?,
            values: [idle.parse()?, intvl.parse()?, cnt.parse()?],
            timer: timer.to_owned(),
        })
    }
}

/// All ends of established connections. Not yet, where ss knows one that no process has: somebody has to accept it.
pub fn ends() -> Option<Vec<End>> {
    let timers = timers();
    let mut ends: Vec<End> = opened().into_values().collect();
    ends.retain_mut(|end| {
        let timer = timers.get(&(end.local.to_string(), end.peer.to_string()));
        timer.inspect(|timer| end.timer.clone_from(timer)).is_some()
    });
    ends.sort_by_key(|end| (end.local, end.peer));
    (ends.len() == timers.len()).then_some(ends)
}

/// Whether somebody listens on a port.
pub fn is_listening(port: u16) -> bool {
    let sockets = stdout(Command::new("ss").args(["-tnlH", &format!("sport = :{port}")]));
    !sockets.is_empty()
}

/// ss: by local and remote address, the timer.
fn timers() -> BTreeMap<(String, String), String> {
    let sockets = ka_test::socket::established("");
    let parse = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        let address = |word: Option<&str>| word.unwrap().to_owned();
        let (local, peer) = (address(words.next()), address(words.next()));
        ((local, peer), words.next().unwrap_or("none").to_owned())
    };
    sockets.lines().map(parse).collect()
}

/// The sockets that processes have open and that are established, by inode.
fn opened() -> BTreeMap<String, End> {
    let mut ends = BTreeMap::new();
    let entries = |path: String| fs::read_dir(path).into_iter().flatten().flatten();
    for process in entries("/proc".to_owned()) {
        let Ok(pid) = process.file_name().to_string_lossy().parse::<i32>() else { continue };
        let mut pidfd = None;
        for entry in entries(format!("/proc/{pid}/fd")) {
            let Ok(link) = fs::read_link(entry.path()) else { continue };
            let link = link.to_string_lossy().into_owned();
            if !link.starts_with("socket:") || ends.contains_key(&link) {
                continue;
            }
            let fd = entry.file_name().to_string_lossy().parse().unwrap();
            let Some(pidfd) = pidfd.get_or_insert_with(|| descriptor(libc::SYS_pidfd_open, pid, 0)) else {
                break;
            };
            let Some(socket) = descriptor(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd) else { continue };
            let comm = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            if let Some(end) = established(socket, comm.trim()) {
                ends.insert(link, end);
            }
        }
    }
    ends
}

/// pidfd_open and pidfd_getfd, which are alike.
fn descriptor(call: libc::c_long, first: i32, second: RawFd) -> Option<OwnedFd> {
    // SAFETY: both take numbers.
    let fd = unsafe { libc::syscall(call, first, second, 0) };
    // SAFETY: it is new and ours.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd.try_into().unwrap()) })
}

fn established(socket: OwnedFd, comm: &str) -> Option<End> {
    const ESTABLISHED: i32 = 1;
    let fd = socket.as_raw_fd();
    let state = option(fd, libc::IPPROTO_TCP, libc::TCP_INFO).ok()? & 0xff;
    if state != ESTABLISHED {
        return None;
    }
    let [on, idle, intvl, cnt, _] = keepalive_options(fd);
    let socket = socket2::Socket::from(socket);
    Some(End {
        comm: comm.to_owned(),
        local: socket.local_addr().ok()?.as_socket()?,
        peer: socket.peer_addr().ok()?.as_socket()?,
        on: on.ok()? != 0,
        values: [idle.ok()?, intvl.ok()?, cnt.ok()?],
        timer: String::new(),
    })
}
