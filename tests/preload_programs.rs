//! Tests real programs under the shim. Their own work must succeed, and both ends of a connection must have a running
//! keepalive timer in ss(8). Each test has its own network.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ka_test::artifact::{release, shim};
use ka_test::child::{Running, preloaded, stderr, stdout, succeed};
use ka_test::compiler::{Linkage, cc, compile};
use ka_test::log::skip;
use ka_test::namespace::{in_own_namespaces, in_own_network_namespace, is_root};
use ka_test::path::{PublicFolder, copy_program, root, scratch};
use ka_test::server::{nginx, redis_arguments};
use ka_test::socket::established;
use ka_test::wait::{eventually, listening};

/// Waits until both ends of each connection to a port have a keepalive timer with at most the policy's 60 s left.
/// While data is in flight, another timer runs, so a single look is not enough.
fn assert_both_ends_have_the_policy(port: u16) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let filter = format!("( sport = :{port} or dport = :{port} )");
        let sockets = established(&filter);
        let has_it = |socket: &str| {
            let timer =
                socket.split_once("timer:(keepalive,").map(|(_, timer)| timer.split(',').next().unwrap());
            timer.is_some_and(|left| left == "1min" || left.ends_with("sec") && left.len() <= 5)
        };
        if sockets.lines().count() >= 2 && sockets.lines().all(has_it) {
            return;
        }
        assert!(Instant::now() < end, "not all of these have a keepalive timer of 60 s:\n{sockets}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn nginx_and_curl_connections_have_the_policy() {
    // nginx's workers survive if their master is killed. They end with the namespace.
    if !in_own_namespaces("nginx_and_curl_connections_have_the_policy") {
        return;
    }
    let conf = nginx("listen 127.0.0.1:8080 so_keepalive=off; limit_rate 100000;");
    fs::write(conf.with_file_name("page"), vec![b'x'; 200_000]).unwrap();
    let _nginx = Running::start(preloaded("nginx").arg("-c").arg(conf));
    listening(8080);
    let curl = thread::spawn(|| stdout(preloaded("curl").args(["-s", "http://127.0.0.1:8080/page"])));
    assert_both_ends_have_the_policy(8080);
    assert_eq!(curl.join().unwrap().len(), 200_000);
}

#[test]
fn redis_connections_have_the_policy() {
    if !in_own_network_namespace("redis_connections_have_the_policy") {
        return;
    }
    let _redis = Running::start(preloaded("redis-server").args(redis_arguments("300")));
    listening(6379);
    let _subscriber = Running::start(preloaded("redis-cli").args(["subscribe", "channel"]));
    assert_both_ends_have_the_policy(6379);
    assert_eq!(stdout(preloaded("redis-cli").args(["set", "key", "value"])), "OK\n");
    assert_eq!(stdout(preloaded("redis-cli").args(["get", "key"])), "value\n");
    let benchmark = stdout(preloaded("redis-benchmark").args(["-q", "-n", "2000", "-t", "set,get"]));
    assert_eq!(benchmark.matches("requests per second").count(), 2, "{benchmark}");
}

#[test]
fn python_and_asyncio_sockets_have_the_policy() {
    if !in_own_network_namespace("python_and_asyncio_sockets_have_the_policy") {
        return;
    }
    let program = r#"
import asyncio, socket, sys

async def serve(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    await asyncio.sleep(3600)

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 7000)
    reader, writer = await asyncio.open_connection("127.0.0.1", 7000)
    writer.write(b"hello\n")
    assert await reader.readline() == b"hello\n"
    plain = socket.create_connection(("127.0.0.1", 7000))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
    assert plain.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1, "getsockopt returns the setting in force"
    plain.sendall(b"plain\n")
    assert await asyncio.get_running_loop().run_in_executor(None, plain.recv, 100) == b"plain\n"
    print("ready", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"#;
    let mut child = preloaded("python3")
        .args([OsStr::new("-c"), OsStr::new(program)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let python = Running(child);
    let mut ready = [0; 5];
    output.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready");
    assert_both_ends_have_the_policy(7000);
    drop(python);
}

/// The server runs under the shim, the client does not. The server's end must have the policy.
#[test]
fn servers_under_the_shim_probe_clients_without_keepalive() {
    if !in_own_network_namespace("servers_under_the_shim_probe_clients_without_keepalive") {
        return;
    }
    let _redis = Running::start(preloaded("redis-server").args(redis_arguments("0")));
    listening(6379);
    let mut client = TcpStream::connect("127.0.0.1:6379").unwrap();
    client.write_all(b"PING\r\n").unwrap();
    let mut answer = [0; 7];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+PONG\r\n");
    let sockets = established("");
    let armed = sockets.lines().filter(|line| line.contains("timer:(keepalive,")).count();
    assert_eq!((sockets.lines().count(), armed), (2, 1), "{sockets}");
}

/// Returns the program folder of the newest PostgreSQL.
fn postgres() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap().map(|entry| entry.unwrap().path());
    versions.max().unwrap().join("bin")
}

/// Returns a command that runs a program of PostgreSQL as nobody, because its server refuses to run as root.
fn as_unprivileged_user(program: &Path) -> Command {
    if !is_root() {
        return preloaded(program);
    }
    let mut command = preloaded("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
    command
}

/// A running PostgreSQL server.
struct Postgres {
    _server: Running,
    _folder: PublicFolder,
}

/// Starts a PostgreSQL server, with or without the shim.
fn start_postgres(is_preloaded: bool, args: &[&str]) -> Postgres {
    let bin = postgres();
    let folder = PublicFolder::new("postgres");
    // The user nobody must be able to write it.
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (shim, data) = (folder.join("libka_preload.so"), folder.join("data"));
    copy_program(ka_test::artifact::shim(), &shim);
    let program = |name: &str| {
        let mut command = as_unprivileged_user(&bin.join(name));
        if is_preloaded {
            command.env("LD_PRELOAD", &shim)
        } else {
            command.env_remove("LD_PRELOAD")
        };
        command
    };
    succeed(program("initdb").args(["-A", "trust", "-U", "ka", "-D"]).arg(&data));
    let mut server = program("postgres");
    server.arg("-D").arg(&data).arg("-k").arg(&folder).stderr(Stdio::null());
    let server = Running::start(server.args(["-h", "127.0.0.1"]).args(args));
    listening(5432);
    eventually("PostgreSQL answers", || psql(&["select 1"]).output().unwrap().status.success());
    Postgres { _server: server, _folder: folder }
}

fn psql(args: &[&str]) -> Command {
    let mut command = preloaded("psql");
    command.args(["-h", "127.0.0.1", "-U", "ka", "-d", "postgres", "-At", "-c"]).args(args);
    command
}

#[test]
fn postgresql_connections_have_the_policy() {
    if !in_own_network_namespace("postgresql_connections_have_the_policy") {
        return;
    }
    // PostgreSQL asks for 300 s, which the shim denies.
    let server = start_postgres(true, &["-c", "tcp_keepalives_idle=300"]);
    let sleeper = Running::start(&mut psql(&["select pg_sleep(60)"]));
    assert_both_ends_have_the_policy(5432);
    assert_eq!(stdout(&mut psql(&["select 6 * 7"])), "42\n");
    let pgbench = |args: &[&str]| {
        stdout(
            preloaded(postgres().join("pgbench"))
                .args(["-h", "127.0.0.1", "-U", "ka"])
                .args(args)
                .arg("postgres"),
        )
    };
    pgbench(&["-i", "-q", "-s", "1"]);
    let benchmark = pgbench(&["-c", "4", "-t", "50"]);
    assert!(benchmark.contains("number of transactions actually processed: 200/200"), "{benchmark}");
    drop((sleeper, server));
}

/// With keepalives=0 libpq makes no setsockopt call, so the socket gets the policy in every mode.
#[test]
fn libpq_without_keepalives_has_the_policy_in_each_mode() {
    if !in_own_network_namespace("libpq_without_keepalives_has_the_policy_in_each_mode") {
        return;
    }
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let timer = |variable: &str, value: &str| {
        let settings = format!("host=127.0.0.1 port={port} keepalives=0 sslmode=disable gssencmode=disable");
        let _client =
            Running::start(preloaded("psql").arg(settings).env(variable, value).stderr(Stdio::null()));
        // The test reads the message, so the kernel acknowledges it.
        let mut connection = server.accept().unwrap().0;
        connection.read_exact(&mut [0; 8]).unwrap();
        thread::sleep(Duration::from_millis(200));
        established(&format!("dport = :{port}"))
    };
    for mode in ["force", "floor", "default"] {
        let found = timer("KA_MODE", mode);
        assert!(found.contains("timer:(keepalive,"), "{mode}: {found}");
    }
    let found = timer("KA_RULES", &format!("rport={port} skip"));
    assert!(found.contains(&port.to_string()) && !found.contains("timer:"), "{found}");
}

/// Tests the statements of docs/recipes.md about Java: the lines that set a socket's options, and PostgreSQL's JDBC
/// driver with and without its own setting, and under the shim.
#[test]
fn java_and_jdbc_connections_have_the_documented_timers() {
    const DRIVER: &str = "/usr/share/java/postgresql.jar";
    let has_compiler =
        Command::new("javac").arg("-version").output().is_ok_and(|printed| printed.status.success());
    if !has_compiler || !Path::new(DRIVER).exists() {
        skip(&format!("Java is not tested: javac or {DRIVER} (libpostgresql-jdbc-java) is missing"));
        return;
    }
    if !in_own_network_namespace("java_and_jdbc_connections_have_the_documented_timers") {
        return;
    }
    let recipes = fs::read_to_string(root().join("docs/recipes.md")).unwrap();
    let lines = recipes.split_once("```java\n").unwrap().1.split_once("```").unwrap().0;
    let folder = scratch("java");
    fs::create_dir(&folder).unwrap();
    let source = folder.join("Lines.java");
    let text = format!(
        "class Lines {{ public static void main(String[] args) throws Exception {{
            var listener = new java.net.ServerSocket(0, 1, java.net.InetAddress.getLoopbackAddress());
            var socket = new java.net.Socket(listener.getInetAddress(), listener.getLocalPort());
            {lines}
            System.in.read(); }} }}"
    );
    fs::write(&source, text).unwrap();
    let mut java = Command::new("strace");
    java.args(["-f", "-e", "trace=setsockopt", "java"]).arg(source).stdin(Stdio::null());
    let trace = stderr(&succeed(&mut java));
    let set = |option: &str| -> Vec<_> {
        let lines = trace.lines().filter(|line| line.contains(option));
        lines.map(|line| line.split_once(", [").unwrap().1.split_once(']').unwrap().0).collect()
    };
    assert_eq!(
        [set("TCP_KEEPIDLE"), set("TCP_KEEPINTVL"), set("TCP_KEEPCNT"), set("SO_KEEPALIVE")],
        [["60"], ["10"], ["5"], ["1"]],
        "{trace}"
    );
    assert!(trace.rfind("SO_KEEPALIVE") > trace.rfind("TCP_KEEP"), "{trace}");

    let _server = start_postgres(false, &[]);
    // Returns the timers that ss shows for the connections of a client to these URLs.
    let timers = |mut java: Command, parameters: &[&str]| {
        java.arg("-cp").arg(DRIVER).arg(root().join("tests/java/Jdbc.java"));
        java.args(
            parameters.iter().map(|more| format!("jdbc:postgresql://127.0.0.1/postgres?user=ka{more}")),
        );
        let mut child = Running(java.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let mut ready = [0; 7];
        child.0.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(&ready, format!("ready {}", parameters.len()).as_bytes());
        thread::sleep(Duration::from_millis(500));
        let printed = established("dport = :5432");
        let timer = |line: &str| {
            let timer = line.split_once("timer:(")?.1.split_once(')')?.0.to_owned();
            Some(timer)
        };
        assert_eq!(printed.lines().count(), parameters.len(), "{printed}");
        let mut timers: Vec<_> = printed.lines().map(timer).collect();
        timers.sort();
        timers
    };
    let own = timers(Command::new("java"), &["", "&tcpKeepAlive=true"]);
    assert_eq!(own, [None, Some("keepalive,119min,0".to_owned())]);
    let under = timers(preloaded("java"), &["", "&tcpKeepAlive=true"]);
    for timer in under {
        let timer = timer.unwrap();
        assert!(timer.starts_with("keepalive,5") && timer.ends_with("sec,0"), "{timer}");
    }
}

/// An SSH server on port 2222 in its own network namespace, and root's key for it.
struct Ssh {
    key: PathBuf,
    _server: Running,
}

impl Ssh {
    /// Starts the server. `None` if it cannot run here.
    fn start(sshd: &mut Command) -> Option<Self> {
        if !is_root() {
            skip("only root may run an SSH server");
            return None;
        }
        let folder = scratch("ssh");
        fs::create_dir(&folder).unwrap();
        // The server needs this folder. Usually its service makes it.
        fs::create_dir_all("/run/sshd").unwrap();
        let key = folder.join("key");
        succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
        fs::copy(key.with_extension("pub"), folder.join("authorized")).unwrap();
        let own = folder.display();
        let configuration = format!(
            "Port 2222\nListenAddress 127.0.0.1\nHostKey {own}/key\nAuthorizedKeysFile {own}/authorized\nStrictModes no\n\
             PermitRootLogin yes\nUsePAM no\nPidFile none\nTCPKeepAlive no\n"
        );
        fs::write(folder.join("sshd"), configuration).unwrap();
        let server = Running::start(sshd.args(["-D", "-f"]).arg(folder.join("sshd")));
        listening(2222);
        Some(Self { key, _server: server })
    }

    /// Adds the options for this server to a command that ends with ssh.
    fn client<'a>(&self, ssh: &'a mut Command, arguments: &[&str]) -> &'a mut Command {
        ssh.args([
            "-F",
            "none",
            "-q",
            "-p",
            "2222",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "TCPKeepAlive=no",
        ]);
        ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-i"]).arg(&self.key).args(arguments)
    }
}

#[test]
fn openssh_connections_have_the_policy() {
    if !in_own_network_namespace("openssh_connections_have_the_policy") {
        return;
    }
    let Some(ssh) = Ssh::start(&mut preloaded("/usr/sbin/sshd")) else { return };
    let host = "root@127.0.0.1";
    assert_eq!(stdout(ssh.client(&mut preloaded("ssh"), &[host, "echo logged in"])), "logged in\n");
    let session = Running::start(ssh.client(&mut preloaded("ssh"), &[host, "sleep 60"]));
    thread::sleep(Duration::from_millis(1500));
    assert_both_ends_have_the_policy(2222);
    drop(session);
}

/// An ssh master owns the connection. `ka run -v` prints a hint, and the command in docs/recipes.md reaches the master.
#[test]
fn the_hint_about_ssh_masters_leads_to_the_connection() {
    if !in_own_network_namespace("the_hint_about_ssh_masters_leads_to_the_connection") {
        return;
    }
    let Some(ssh) = Ssh::start(&mut Command::new("/usr/sbin/sshd")) else { return };
    // The path of a unix socket must be short.
    let folder = PublicFolder::new("master");
    let path = folder.join("m").display().to_string();
    let host = "root@127.0.0.1";
    let _master = Running::start(ssh.client(&mut Command::new("ssh"), &["-M", "-S", &path, "-N", host]));
    let check =
        || ssh.client(&mut Command::new("ssh"), &["-S", &path, "-O", "check", host]).output().unwrap();
    eventually("the master runs", || check().status.success());
    let connections = || established("dport = :2222");
    let mut run = Command::new(release().join("ka"));
    run.args(["run", "-v", "--", "ssh"]);
    let output = succeed(ssh.client(&mut run, &["-S", &path, host, "echo through it"]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "through it\n");
    let printed = stderr(&output);
    let hint =
        "ka: ssh: it may hand its work to the ssh master of this host, if one is running (ControlPath)";
    assert!(printed.contains(hint) && printed.contains("`ssh -O check HOST` prints its PID"), "{printed}");
    let before = connections();
    assert!(before.lines().count() == 1 && !before.contains("timer:(keepalive"), "{before}");

    let text = fs::read_to_string(root().join("docs/recipes.md")).unwrap();
    let recipe = text.lines().find(|line| line.starts_with("ka attach --follow \"$(ssh -O check")).unwrap();
    // A user's ssh reads the host's port, key and master from its configuration files.
    let options = format!("-F none -p 2222 -S {path}");
    let recipe = recipe.replace("ssh -O", &format!("ssh {options} -O")).replace("HOST", host);
    let ka = release().join("ka").display().to_string();
    let mut shell = Command::new("sh");
    let _attach = Running::start(shell.args(["-c", &format!("exec {}", recipe.replacen("ka", &ka, 1))]));
    eventually("the master's connection has keepalive", || {
        connections().lines().all(|line| line.contains("timer:(keepalive,"))
    });
}

#[test]
fn node_connections_have_the_policy() {
    if !in_own_network_namespace("node_connections_have_the_policy") {
        return;
    }
    let program = r#"
const net = require("net");
const server = net.createServer((socket) => socket.pipe(socket));
server.listen(7100, "127.0.0.1", () => {
  const client = net.connect(7100, "127.0.0.1", () => client.write("hello"));
  client.setKeepAlive(false);
  client.on("data", (data) => { if (data.toString() === "hello") console.log("ready"); });
});
"#;
    let mut child =
        preloaded("node").args(["-e", program]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    let node = Running(child);
    let mut ready = [0; 5];
    output.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"ready");
    assert_both_ends_have_the_policy(7100);
    drop(node);
}

/// The other library is preloaded before the shim, and after it.
#[test]
fn other_preloaded_libraries_work_with_the_shim() {
    let moments = compile(&mut cc(), &root().join("tests/c/preload/moments.c"), Linkage::Nothing);
    let sockets = compile(&mut cc(), &root().join("tests/c/preload/sockets.c"), Linkage::Nothing);
    let alone = stdout(&mut preloaded(&sockets));
    let found = |pattern: &str| {
        let shell = stdout(Command::new("sh").args(["-c", &format!("ls {pattern} | head -n 1")]));
        shell.trim().to_owned()
    };
    let shim = shim();
    let shim = shim.to_str().unwrap();
    for (other, file) in [
        ("libfaketime", found("/usr/lib/*/faketime/libfaketime.so.1")),
        ("torsocks", found("/usr/lib/*/torsocks/libtorsocks.so")),
        ("proxychains4", found("/usr/lib/*/libproxychains.so.4")),
        ("mptcpize", found("/usr/lib/*/mptcpize/libmptcpwrap.so.0")),
        ("jemalloc", found("/usr/lib/*/libjemalloc.so.2")),
    ] {
        for order in [format!("{file}:{shim}"), format!("{shim}:{file}")] {
            let one = preloaded(&moments)
                .arg("one")
                .env("LD_PRELOAD", &order)
                .env("FAKETIME", "+1d")
                .env("TORSOCKS_LOG_LEVEL", "1")
                .env("PROXYCHAINS_QUIET_MODE", "1")
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&one.stdout);
            // mptcpize turns the socket into MPTCP, which has no user timeout.
            let has_it = printed.starts_with("1 60 10 6 0\n")
                || (other == "mptcpize" && printed.starts_with("1 60 10 6 -95\n"));
            assert!(has_it, "{order}: {printed}{}", String::from_utf8_lossy(&one.stderr));
            // The others redirect connections or change their protocol, so the output of `sockets` differs.
            if matches!(other, "libfaketime" | "jemalloc") {
                assert_eq!(
                    stdout(preloaded(&sockets).env("LD_PRELOAD", &order).env("FAKETIME", "+1d")),
                    alone,
                    "{order}"
                );
            }
        }
    }
}
