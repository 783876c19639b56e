//! Machines and the cables between them: network namespaces and veth pairs.
//!
//! Nothing here has a name outside the process. A namespace exists as long as its descriptor is open, or a process is
//! in it. The kernel then removes its links, addresses, rules and connections. So no case needs to clean up.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{process, thread};

use socket2::{Domain, Protocol, Socket, Type};

use ka_test::kernel::has_ipv6;
use ka_test::socket::set_option;

/// The port of the servers.
pub const PORT: u16 = 5050;
/// The port of the proxy on the router.
pub const PROXY_PORT: u16 = 5051;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn of(self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        match self {
            Self::V4 => v4.into(),
            Self::V6 => v6.into(),
        }
    }
}

/// A machine: a network namespace.
pub struct Machine {
    namespace: File,
}

impl Machine {
    /// Makes a machine with a loopback and no cable.
    pub fn new() -> Self {
        let namespace = thread::scope(|scope| {
            scope
                .spawn(|| {
                    // SAFETY: the call takes no pointer. It moves only this thread, which ends here.
                    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
                    assert_eq!(result, 0, "{}", io::Error::last_os_error());
                    File::open("/proc/thread-self/ns/net").unwrap()
                })
                .join()
                .unwrap()
        });
        let machine = Self { namespace };
        machine.ip("link set lo up");
        if has_ipv6() {
            // Turn duplicate address detection off (RFC 4862, 5.4). It would delay each address by a second.
            machine.sysctl("ipv6/conf/default/accept_dad", 0);
            machine.sysctl("ipv6/conf/default/dad_transmits", 0);
        }
        machine
    }

    /// Returns the path of the namespace for children of this process.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", process::id(), self.namespace.as_raw_fd())
    }

    /// Runs a function on this machine. Sockets that it makes belong to this machine.
    pub fn within<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace.as_raw_fd();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                enter(namespace).unwrap();
                what()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Returns a command that runs a program on this machine.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.moves(&mut command);
        command
    }

    /// Makes a command run on this machine.
    pub fn moves(&self, command: &mut Command) {
        let namespace = self.namespace.as_raw_fd();
        // SAFETY: between fork and exec, the closure makes only one system call. exec closes the descriptor of the
        // namespace.
        unsafe { command.pre_exec(move || enter(namespace)) };
    }

    /// Runs ip(8) commands, one per line.
    pub fn ip(&self, commands: &str) {
        self.feed("ip", &["-batch", "-"], commands);
    }

    /// Adds nft(8) rules.
    pub fn nft(&self, rules: &str) {
        self.feed("nft", &["-f", "-"], rules);
    }

    fn feed(&self, program: &str, args: &[&str], input: &str) {
        let mut child = self
            .command(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} has failed:\n{input}\n{message}");
    }

    /// Writes /proc/sys/net/NAME.
    pub fn sysctl(&self, name: &str, value: u64) {
        let (path, value) = (Path::new("/proc/sys/net").join(name), value.to_string());
        self.within(|| fs::write(&path, value).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
    }

    /// Connects this machine to another one by a cable. The names are those of the interfaces at both ends.
    fn cable(&self, name: &str, other: &Self, other_name: &str) {
        self.ip(&format!("link add {name} type veth peer name {other_name} netns {}", other.path()));
    }
}

/// Moves this thread to a network namespace.
fn enter(namespace: i32) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    match unsafe { libc::setns(namespace, libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A cable that forwards frames between two interfaces with a delay.
pub struct SlowCable {
    _machine: Machine,
    cut: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
}

impl SlowCable {
    fn carry(machine: Machine, delay: Duration) -> Self {
        let cut = Arc::new(AtomicBool::new(false));
        let ends = ["near", "far"].map(|name| Arc::new(machine.within(|| frames_of(name))));
        let carriers = [(0, 1, delay), (1, 0, Duration::ZERO)].map(|(from, to, delay)| {
            let (from, to, cut) = (Arc::clone(&ends[from]), Arc::clone(&ends[to]), Arc::clone(&cut));
            thread::spawn(move || carry(&from, &to, delay, &cut))
        });
        Self { _machine: machine, cut, carriers: carriers.into() }
    }
}

impl Drop for SlowCable {
    fn drop(&mut self) {
        self.cut.store(true, Ordering::Relaxed);
        for carrier in self.carriers.drain(..) {
            let _ = carrier.join();
        }
    }
}

/// Makes a socket that reads the incoming frames of an interface, and writes outgoing ones. Before each frame is a
/// header about its unfinished checksum (virtio_net_hdr).
fn frames_of(interface: &str) -> Socket {
    let everything = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(everything))).unwrap();
    set_option(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1);
    set_option(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1);
    let name = CString::new(interface).unwrap();
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.try_into().unwrap(),
        sll_protocol: u16::try_from(libc::ETH_P_ALL).unwrap().to_be(),
        // SAFETY: the name ends with a NUL.
        sll_ifindex: unsafe { libc::if_nametoindex(name.as_ptr()) }.try_into().unwrap(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let size = size_of_val(&address).try_into().unwrap();
    // SAFETY: the size is that of the address.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    assert_eq!(bound, 0, "{interface}: {}", io::Error::last_os_error());
    socket
}

fn carry(from: &Socket, to: &Socket, delay: Duration, cut: &AtomicBool) {
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut buffer = vec![0; 1 << 17];
    while !cut.load(Ordering::Relaxed) {
        let due = under_way.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        // A timeout of zero would be infinite.
        let wait = due
            .unwrap_or(Duration::from_millis(50))
            .clamp(Duration::from_micros(1), Duration::from_millis(50));
        from.set_read_timeout(Some(wait)).unwrap();
        if let Ok(size) = io::Read::read(&mut &*from, &mut buffer) {
            under_way.push_back((Instant::now() + delay, buffer[..size].to_vec()));
        }
        while under_way.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let (_, frame) = under_way.pop_front().unwrap();
            let _ = to.send(&frame);
        }
    }
}

/// A network: client -- router -- server. The router may do more than forward packets.
pub struct Network {
    pub client: Machine,
    pub router: Machine,
    pub server: Machine,
    /// The address that clients connect to.
    host: fn(Family) -> IpAddr,
}

/// The ip commands for the router's end of the server's cable.
const ROUTER_TO_SERVER: &str = "link set server up
    address add 198.51.100.1/24 dev server
    address add 2001:db8:2::1/64 dev server nodad";

/// Only one network at a time makes its cables. Many at once would delay cases that measure.
static BUILDING: Mutex<()> = Mutex::new(());

impl Network {
    /// Makes a network whose router only forwards.
    pub fn routed() -> Self {
        let alone = BUILDING.lock();
        let (client, router, server) = (Machine::new(), Machine::new(), Machine::new());
        client.cable("eth0", &router, "client");
        router.sysctl("ipv4/ip_forward", 1);
        router.sysctl("ipv6/conf/all/forwarding", 1);
        let host =
            |family: Family| family.of(Ipv4Addr::new(198, 51, 100, 2), "2001:db8:2::2".parse().unwrap());
        let network = Self { client, router, server, host };
        network.connect_client();
        network.router.cable("server", &network.server, "eth0");
        Self::address_server(&network.server);
        network.router.ip(ROUTER_TO_SERVER);
        drop(alone);
        network
    }

    /// Makes the same network with a slow cable between the client and the router. Packets of the client take `delay`.
    pub fn slow(delay: Duration) -> (Self, SlowCable) {
        let network = Self::routed();
        // Cut the client's cable in two, and put a machine in between that forwards frames from one half to the other.
        network.router.ip("link delete client");
        let between = Machine::new();
        network.client.cable("eth0", &between, "near");
        network.router.cable("client", &between, "far");
        between.ip("link set near up
            link set far up");
        network.connect_client();
        (network, SlowCable::carry(between, delay))
    }

    /// Makes a container on the client: a namespace on a cable to the client, which translates its address.
    pub fn container(&self) -> Machine {
        let container = Machine::new();
        container.cable("eth0", &self.client, "container");
        container.ip("link set eth0 up
            address add 172.17.0.2/24 dev eth0");
        self.client.ip("link set container up
            address add 172.17.0.1/24 dev container");
        container.ip("route add default via 172.17.0.1");
        self.client.sysctl("ipv4/ip_forward", 1);
        self.client.nft(
            r#"table ip translation {
                chain hide {
                    type nat hook postrouting priority srcnat
                    oifname "eth0" ip saddr 172.17.0.0/24 masquerade
                }
            }"#,
        );
        container
    }

    /// Sets the addresses of both ends of the client's cable.
    fn connect_client(&self) {
        self.client.ip("link set eth0 up
            address add 192.0.2.2/24 dev eth0
            address add 2001:db8:1::2/64 dev eth0 nodad");
        self.router.ip("link set client up
            address add 192.0.2.1/24 dev client
            address add 2001:db8:1::1/64 dev client nodad");
        self.client.ip("route add default via 192.0.2.1
            route add default via 2001:db8:1::1");
    }

    /// Sets the addresses of the server's end of its cable.
    fn address_server(server: &Machine) {
        server.ip("link set eth0 up
            address add 198.51.100.2/24 dev eth0
            address add 2001:db8:2::2/64 dev eth0 nodad
            route add default via 198.51.100.1
            route add default via 2001:db8:2::1");
    }

    /// Makes a network whose router translates the client's address to its own. It forgets connections that are idle
    /// for `timeout`, and silently drops packets of unknown connections.
    pub fn with_nat(timeout: Duration) -> Self {
        let network = Self::translated(timeout);
        network.filters("unknown", "ct state invalid drop");
        network
    }

    /// Makes the same network with a NAT that answers packets of unknown connections with RST.
    pub fn with_resetting_nat(timeout: Duration) -> Self {
        let network = Self::translated(timeout);
        network.filters("unknown", "meta l4proto tcp ct state invalid reject with tcp reset");
        network
    }

    /// Makes the same network with a NAT that picks up a connection in the middle: a packet of an unknown connection
    /// from the client makes it known again.
    pub fn with_loose_nat(timeout: Duration) -> Self {
        let network = Self::with_nat(timeout);
        network.router.sysctl("netfilter/nf_conntrack_tcp_loose", 1);
        network
    }

    /// Makes a network whose router translates the client's address to its own, and forgets idle connections.
    fn translated(timeout: Duration) -> Self {
        let network = Self::routed();
        network.forgets(timeout);
        network.router.nft(
            r#"table inet translation {
                chain hide {
                    type nat hook postrouting priority srcnat
                    oifname "server" masquerade
                }
            }"#,
        );
        network
    }

    /// Makes a network whose router is a load balancer with its own address for clients. It forgets connections that
    /// are idle for `timeout`, and answers packets of unknown connections with RST.
    pub fn with_load_balancer(timeout: Duration) -> Self {
        let mut network = Self::routed();
        network.host = |family| family.of(Ipv4Addr::new(203, 0, 113, 80), "2001:db8:3::80".parse().unwrap());
        network.router.ip("address add 203.0.113.80/32 dev lo
            address add 2001:db8:3::80/128 dev lo nodad");
        network.forgets(timeout);
        network.router.nft(&format!(
            "table inet balancer {{
                chain balance {{
                    type nat hook prerouting priority dstnat
                    ip daddr 203.0.113.80 tcp dport {PORT} dnat ip to 198.51.100.2
                    ip6 daddr 2001:db8:3::80 tcp dport {PORT} dnat ip6 to 2001:db8:2::2
                }}
                chain unknown {{
                    type filter hook input priority filter
                    meta l4proto tcp ct state invalid reject with tcp reset
                }}
                chain unknown_too {{
                    type filter hook forward priority filter
                    meta l4proto tcp ct state invalid reject with tcp reset
                }}
            }}"
        ));
        network
    }

    /// Makes a network whose router ends the connections of clients itself: it redirects them to `PROXY_PORT`.
    pub fn with_proxy() -> Self {
        let network = Self::routed();
        network.router.nft(&format!(
            r#"table inet proxy {{
                chain divert {{
                    type nat hook prerouting priority dstnat
                    iifname "client" tcp dport {PORT} redirect to :{PROXY_PORT}
                }}
            }}"#
        ));
        network
    }

    /// Turns connection tracking on, as strict as in middleboxes: it accepts no connection without its handshake.
    fn forgets(&self, timeout: Duration) {
        // A rule with a connection state turns the tracking on.
        self.filters("tracking", "ct state established");
        self.router.sysctl("netfilter/nf_conntrack_tcp_timeout_established", timeout.as_secs());
        self.router.sysctl("netfilter/nf_conntrack_tcp_loose", 0);
        self.router.sysctl("netfilter/nf_conntrack_tcp_be_liberal", 0);
    }

    pub fn host(&self, family: Family) -> IpAddr {
        (self.host)(family)
    }

    /// Pulls the server's cable, kills the machine, and connects a new one with the same addresses. The new one is
    /// prepared first, so that the change takes little time.
    pub fn reboot_server(&mut self, dies: impl FnOnce()) {
        let fresh = Machine::new();
        self.router.cable("fresh", &fresh, "eth0");
        Self::address_server(&fresh);
        self.router.ip("link set server down");
        dies();
        self.router.ip(&format!("link delete server\nlink set fresh name server\n{ROUTER_TO_SERVER}"));
        self.server = fresh;
    }

    /// Makes a listener on the server, on all its addresses.
    pub fn listen(&self) -> TcpListener {
        self.listen_for(Protocol::TCP)
    }

    /// Makes a listener for TCP or Multipath TCP.
    pub fn listen_for(&self, protocol: Protocol) -> TcpListener {
        self.server.within(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(protocol)).unwrap();
            socket.set_only_v6(false).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT)).into()).unwrap();
            socket.listen(4096).unwrap();
            socket.into()
        })
    }

    /// Makes a connection from the client.
    pub fn connect(&self, family: Family) -> TcpStream {
        self.connect_with(family, |_| {})
    }

    /// Makes a connection from the client. Calls `before` with its socket first.
    pub fn connect_with(&self, family: Family, before: impl FnOnce(&Socket) + Send) -> TcpStream {
        self.connect_by(Protocol::TCP, family, before)
    }

    /// Makes a connection of TCP or Multipath TCP from the client. Calls `before` with its socket first.
    pub fn connect_by(
        &self,
        protocol: Protocol,
        family: Family,
        before: impl FnOnce(&Socket) + Send,
    ) -> TcpStream {
        let address = SocketAddr::new(self.host(family), PORT);
        self.client.within(|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(protocol)).unwrap();
            before(&socket);
            socket.connect_timeout(&address.into(), Duration::from_secs(10)).unwrap();
            socket.into()
        })
    }

    /// Makes a connection. Returns both ends.
    pub fn pair(&self, listener: &TcpListener, family: Family) -> (TcpStream, TcpStream) {
        let client = self.connect(family);
        (client, listener.accept().unwrap().0)
    }

    /// Makes the router silently drop packets that match.
    pub fn drop_packets(&self, what: &str) {
        self.filters("loss", &format!("{what} drop"));
    }

    /// Adds a rule for packets that the router forwards.
    pub fn filters(&self, table: &str, rule: &str) {
        self.router.nft(&format!(
            "table inet {table} {{
                chain forward {{
                    type filter hook forward priority filter
                    {rule}
                }}
            }}"
        ));
    }

    /// Removes the rule of `drop_packets`.
    pub fn stop_dropping(&self) {
        self.router.nft("delete table inet loss");
    }
}
