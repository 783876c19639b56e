//! Configurations of servers that others wrote.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::namespace::is_root;
use crate::path::scratch;

/// Writes a configuration of nginx with one server and returns its path.
///
/// `server` are the directives of the server. All files of nginx are in the folder of the configuration, which is also
/// the server's document root.
pub fn nginx(server: &str) -> PathBuf {
    let folder = scratch("nginx");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let own = folder.display();
    let user = if is_root() { "user root;" } else { "" };
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {own}/{name}; "));
    let text = format!(
        "daemon off; {user} pid {own}/pid; error_log {own}/error; events {{}} http {{ access_log off; {} \
         server {{ root {own}; {server} }} }}",
        paths.concat()
    );
    let path = folder.join("conf");
    fs::write(&path, text).unwrap();
    path
}

/// Returns arguments of redis-server: port 6379, no snapshots, and this `tcp-keepalive` in seconds (0 turns it off).
pub fn redis_arguments(keepalive: &str) -> [&str; 8] {
    ["--port", "6379", "--save", "", "--bind", "127.0.0.1", "--tcp-keepalive", keepalive]
}
