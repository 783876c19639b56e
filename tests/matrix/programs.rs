//! The programs, one row each: shell scripts (`sh -eu`) that start a server and send it requests. They run as root in
//! the empty folder /run/work, and no other program runs on their machine.
//!
//! Files that are the same for all ways are built once. `held` is a client that stays connected until it is killed. Its
//! standard input has no data, and does not end. The output of `work` must be the same each time.

use crate::way::Way;

pub struct Program {
    pub name: &'static str,
    /// A description of the program and its special properties.
    pub what: &'static str,
    /// The tools for scripts/need.
    pub needs: &'static str,
    /// A script that prints the version in its first line.
    pub version: &'static str,
    pub build: &'static str,
    /// The server's port on 127.0.0.1.
    pub port: u16,
    pub server: &'static str,
    pub held: &'static str,
    pub work: &'static str,
    /// The ways that do not work, and why. If such a way works, the test fails.
    pub except: &'static [(&'static [Way], &'static str)],
}

const PRELOAD: &[Way] = &[Way::Force, Way::Floor, Way::Default];

const GO: (&[Way], &str) = (
    PRELOAD,
    "Go calls the kernel without the C library, so the shim has no effect. `ka run` uses seccomp for Go",
);

/// Makes two web pages.
macro_rules! pages {
    () => {
        "mkdir www; echo hello >www/index.html; head -c 60000 /dev/zero | tr '\\0' x >www/page\n"
    };
}
const WEB_PORT: u16 = 8080;
/// A client that sends its second request after a minute, on the same connection.
const WEB_HELD: &str = "
    exec curl -sS --rate 1/m -o first -o second http://127.0.0.1:8080/page http://127.0.0.1:8080/page";
const WEB_WORK: &str = "
    curl -sS http://127.0.0.1:8080/index.html http://127.0.0.1:8080/
    curl -sS http://127.0.0.1:8080/page | sha256sum
    curl -sS -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:8080/absent";
macro_rules! nginx {
    () => {
        concat!(
            pages!(),
            "cat >conf <<'END'
daemon off; user www-data; worker_processes 2; pid /run/work/pid; error_log /run/work/error;
events {}
http { access_log off; client_body_temp_path /run/work/b; proxy_temp_path /run/work/p; fastcgi_temp_path /run/work/f;
       uwsgi_temp_path /run/work/u; scgi_temp_path /run/work/s;
       server { listen 127.0.0.1:8080;
                root /run/work/www; } }
END
"
        )
    };
}
/// A server behind a proxy, which holds an unfinished request.
macro_rules! backend {
    () => {
        "python3 -m http.server -b 127.0.0.1 -d www 8081 >backend 2>&1 &
        while ! ss -Htnl sport = :8081 | grep -q .; do sleep 0.1; done
        "
    };
}
/// A client that sends nothing and stays connected.
macro_rules! stay {
    ($port:literal) => {
        concat!("exec ncat 127.0.0.1 ", $port)
    };
}
/// A client of a line protocol.
macro_rules! talk {
    ($port:literal, $words:literal) => {
        concat!("printf '", $words, "' | ncat 127.0.0.1 ", $port)
    };
}
/// A program that exists in each language: an echo server on port 7000, and a client that sends a line and prints the
/// answer. With the argument `hold`, the client stays connected.
const ECHO_PORT: u16 = 7000;

macro_rules! go {
    () => {
        "export GOCACHE=/run/work/cache GOFLAGS=-mod=mod
cat >echo.go <<'END'
package main

import (
	\"bufio\"
	\"fmt\"
	\"io\"
	\"net\"
	\"os\"
	\"time\"
)

func main() {
	if os.Args[1] == \"server\" {
		server, err := net.Listen(\"tcp\", \"127.0.0.1:7000\")
		if err != nil {
			panic(err)
		}
		for {
			client, err := server.Accept()
			if err != nil {
				panic(err)
			}
			go func() { io.Copy(client, client); client.Close() }()
		}
	}
	client, err := net.Dial(\"tcp\", \"127.0.0.1:7000\")
	if err != nil {
		panic(err)
	}
	fmt.Fprintln(client, \"hello\")
	line, _ := bufio.NewReader(client).ReadString('\\n')
	fmt.Print(line)
	if os.Args[1] == \"hold\" {
		time.Sleep(time.Minute)
	}
}
END
"
    };
}

pub const ALL: &[Program] = &[
    Program {
        name: "nginx",
        what: "web server; a master, and workers that become another user",
        needs: "nginx curl",
        version: "nginx -v",
        build: nginx!(),
        port: WEB_PORT,
        server: "exec nginx -c /run/work/conf",
        held: WEB_HELD,
        work: WEB_WORK,
        except: &[],
    },
    Program {
        name: "apache",
        what: "web server; processes with threads",
        needs: "apache2 curl",
        version: "apache2 -v",
        build: concat!(
            pages!(),
            "cat >conf <<'END'
ServerName localhost
Listen 127.0.0.1:8080
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
User www-data
Group www-data
PidFile /run/work/pid
ErrorLog /run/work/error
DefaultRuntimeDir /run/work
DocumentRoot /run/work/www
KeepAliveTimeout 60
END
"
        ),
        port: WEB_PORT,
        server: "exec apache2 -d /run/work -f conf -DFOREGROUND",
        held: WEB_HELD,
        work: WEB_WORK,
        except: &[],
    },
    Program {
        name: "lighttpd",
        what: "web server",
        needs: "lighttpd curl",
        version: "lighttpd -v",
        build: concat!(
            pages!(),
            "cat >conf <<'END'
server.document-root = \"/run/work/www\"
server.bind = \"127.0.0.1\"
server.port = 8080
server.username = \"www-data\"
server.max-keep-alive-idle = 60
index-file.names = ( \"index.html\" )
END
"
        ),
        port: WEB_PORT,
        server: "exec lighttpd -D -f conf",
        held: WEB_HELD,
        work: WEB_WORK,
        except: &[],
    },
    Program {
        name: "caddy",
        what: "web server in Go",
        needs: "caddy curl",
        version: "caddy version",
        build: pages!(),
        port: WEB_PORT,
        server: "exec caddy file-server --root www --listen 127.0.0.1:8080",
        held: WEB_HELD,
        work: WEB_WORK,
        except: &[GO],
    },
    Program {
        name: "haproxy",
        what: "balancer; chroot, another user, two threads",
        needs: "haproxy curl ncat",
        version: "haproxy -v",
        build: concat!(
            pages!(),
            "mkdir empty; cat >conf <<'END'
global
    chroot /run/work/empty
    user nobody
    nbthread 2
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:8080
    default_backend back
backend back
    server one 127.0.0.1:8081
END
"
        ),
        port: WEB_PORT,
        server: concat!(backend!(), "exec haproxy -db -f conf"),
        held: stay!("8080"),
        work: WEB_WORK,
        except: &[],
    },
    Program {
        name: "squid",
        what: "proxy; a tunnel through it",
        needs: "squid curl ncat",
        version: "squid -v",
        build: concat!(
            pages!(),
            "cat >conf <<'END'
http_port 127.0.0.1:3128
http_access allow all
cache deny all
cache_effective_user proxy
pid_filename none
access_log none
cache_log /dev/null
coredump_dir /run/work
visible_hostname localhost
shutdown_lifetime 1 second
END
"
        ),
        port: 3128,
        server: concat!(backend!(), "exec squid -N -f conf"),
        held: "exec ncat --proxy 127.0.0.1:3128 --proxy-type http 127.0.0.1 8081",
        work: "
            curl -sS -x http://127.0.0.1:3128 http://127.0.0.1:8081/index.html
            curl -sS -p -x http://127.0.0.1:3128 http://127.0.0.1:8081/page | sha256sum",
        except: &[],
    },
    Program {
        name: "varnish",
        what: "web cache; a jailed child process",
        needs: "varnishd cc curl",
        version: "varnishd -V",
        build: concat!(pages!(), "mkdir -m 755 cache"),
        port: WEB_PORT,
        server: concat!(
            backend!(),
            "exec varnishd -F -a 127.0.0.1:8080 -b 127.0.0.1:8081 -n /run/work/cache -s malloc,16m -T none -p timeout_idle=60"
        ),
        held: WEB_HELD,
        work: WEB_WORK,
        except: &[],
    },
    Program {
        name: "stunnel",
        what: "TLS in front of another server",
        needs: "stunnel4 openssl curl",
        version: "stunnel4 -version 2>&1 | grep ^stunnel",
        build: concat!(
            pages!(),
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -subj /CN=localhost -days 30
cat >conf <<'END'
foreground = yes
pid =
setuid = nobody
[web]
accept = 127.0.0.1:8443
connect = 127.0.0.1:8081
cert = /run/work/cert
key = /run/work/key
END
"
        ),
        port: 8443,
        server: concat!(backend!(), "exec stunnel4 conf"),
        held: "exec openssl s_client -quiet -connect 127.0.0.1:8443",
        work: "curl -sSk https://127.0.0.1:8443/index.html; curl -sSk https://127.0.0.1:8443/page | sha256sum",
        except: &[],
    },
    Program {
        name: "postgresql",
        what: "database; a process for each connection, with its own keepalive of 300 s",
        needs: "postgres psql setpriv",
        version: "/usr/lib/postgresql/*/bin/postgres --version",
        build: "
            mkdir data; chown nobody data
            setpriv --reuid nobody --clear-groups /usr/lib/postgresql/*/bin/initdb -A trust -U ka -D data",
        port: 5432,
        server: "
            exec setpriv --reuid nobody --clear-groups /usr/lib/postgresql/*/bin/postgres -D /run/work/data -k '' \
                -h 127.0.0.1 -c tcp_keepalives_idle=300",
        held: "exec psql -h 127.0.0.1 -U ka -d postgres -c 'select pg_sleep(60)'",
        work: "
            psql -h 127.0.0.1 -U ka -d postgres -At -v ON_ERROR_STOP=1 -c 'create table t as select generate_series(1, 1000) n' \
                -c 'select sum(n) from t' -c 'drop table t'",
        except: &[],
    },
    Program {
        name: "mariadb",
        what: "database; a thread for each connection",
        needs: "mariadbd mariadb mariadb-install-db",
        version: "mariadbd --version",
        build: "
            mkdir data; chown nobody data
            mariadb-install-db --no-defaults --user=nobody --datadir=/run/work/data --skip-test-db",
        port: 3306,
        server: "
            exec mariadbd --no-defaults --user=nobody --datadir=/run/work/data --bind-address=127.0.0.1 --port=3306 \
                --socket=/run/work/data/socket --pid-file=/run/work/data/pid --skip-grant-tables --skip-networking=0",
        held: "exec mariadb --no-defaults --protocol=tcp -h 127.0.0.1 -e 'select sleep(60)'",
        work: "
            mariadb --no-defaults --protocol=tcp -h 127.0.0.1 -N -e 'create database d; create table d.t (n int);
                insert into d.t values (1), (2), (39); select sum(n) from d.t; drop database d'",
        except: &[],
    },
    Program {
        name: "redis",
        what: "store; with its own keepalive of 300 s",
        needs: "redis-server redis-cli redis-benchmark",
        version: "redis-server --version",
        build: ":",
        port: 6379,
        server: "exec redis-server --port 6379 --bind 127.0.0.1 --save ''",
        held: "exec redis-cli -h 127.0.0.1 subscribe channel",
        work: "
            redis-cli -h 127.0.0.1 set key value
            redis-cli -h 127.0.0.1 get key
            redis-benchmark -h 127.0.0.1 -q -n 1000 -t set,get --csv | cut -d, -f1",
        except: &[],
    },
    Program {
        name: "memcached",
        what: "cache; the main thread passes connections to other threads",
        needs: "memcached ncat",
        version: "memcached --version",
        build: ":",
        port: 11211,
        server: "exec memcached -u nobody -l 127.0.0.1 -p 11211",
        held: stay!("11211"),
        work: talk!("11211", "set k 0 0 5\\r\\nhello\\r\\nget k\\r\\nquit\\r\\n"),
        except: &[],
    },
    Program {
        name: "etcd",
        what: "store in Go, and its client in Go",
        needs: "etcd etcdctl",
        version: "etcd --version",
        build: ":",
        port: 2379,
        server: "
            exec etcd --data-dir data --listen-client-urls http://127.0.0.1:2379 \
                --advertise-client-urls http://127.0.0.1:2379 --listen-peer-urls http://127.0.0.1:2380",
        held: "ETCDCTL_API=3 exec etcdctl --endpoints 127.0.0.1:2379 watch key",
        work: "
            export ETCDCTL_API=3
            etcdctl --endpoints 127.0.0.1:2379 put key value; etcdctl --endpoints 127.0.0.1:2379 get key",
        except: &[GO],
    },
    Program {
        name: "mosquitto",
        what: "MQTT broker",
        needs: "mosquitto mosquitto_pub",
        version: "mosquitto -h",
        build: "printf 'listener 1883 127.0.0.1\\nallow_anonymous true\\nuser nobody\\n' >conf",
        port: 1883,
        server: "exec mosquitto -c conf",
        held: "exec mosquitto_sub -h 127.0.0.1 -t held",
        work: "mosquitto_pub -h 127.0.0.1 -r -t topic -m hello; mosquitto_sub -h 127.0.0.1 -t topic -C 1",
        except: &[],
    },
    Program {
        name: "nats",
        what: "message broker in Go",
        needs: "nats-server ncat",
        version: "nats-server --version",
        build: ":",
        port: 4222,
        server: "exec nats-server -a 127.0.0.1 -p 4222",
        held: stay!("4222"),
        work: "
            { printf 'CONNECT {\"verbose\":false}\\r\\nSUB a 1\\r\\nPUB a 5\\r\\nhello\\r\\nPING\\r\\n'; sleep 0.5; } |
                ncat 127.0.0.1 4222 | grep -v ^INFO",
        except: &[GO],
    },
    Program {
        name: "beanstalkd",
        what: "work queue",
        needs: "beanstalkd ncat",
        version: "beanstalkd -v",
        build: ":",
        port: 11300,
        server: "exec beanstalkd -l 127.0.0.1 -p 11300 -u nobody",
        held: stay!("11300"),
        work: talk!("11300", "put 1 0 60 5\\r\\nhello\\r\\nreserve\\r\\nquit\\r\\n"),
        except: &[],
    },
    Program {
        name: "exim",
        what: "mail server; a process for each connection",
        needs: "exim4 curl ncat",
        version: "exim4 --version",
        build: "
mkdir -m 777 spool mail log; printf 'Subject: hello\\r\\n\\r\\nworld\\r\\n' >letter
cat >conf <<'END'
primary_hostname = test.example
spool_directory = /run/work/spool
log_file_path = /run/work/log/%slog
pid_file_path = /run/work/spool/pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = 2525
acl_smtp_rcpt = anyone
keep_environment =
begin acl
anyone:
  accept
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  file = /run/work/mail/box
  user = nobody
  group = nogroup
END
",
        port: 2525,
        // With -C, exim4 would drop root, which it needs here.
        server: "mkdir -p /var/lib/exim4; cp conf /var/lib/exim4/config.autogenerated; exec exim4 -bdf",
        held: stay!("2525"),
        work: "
            curl -sS --mail-from a@test.example --mail-rcpt b@test.example -T letter smtp://127.0.0.1:2525
            while ! grep -s world mail/box; do sleep 0.1; done",
        except: &[],
    },
    Program {
        name: "dovecot",
        what: "IMAP server; a jailed process passes the connection to another process after the login",
        needs: "dovecot curl ncat",
        version: "dovecot --version",
        build: "
mkdir -m 777 mail; printf 'Subject: hello\\r\\n\\r\\nworld\\r\\n' >letter
cat >conf <<'END'
base_dir = /run/work/base
state_dir = /run/work/state
log_path = /run/work/log
protocols = imap
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
first_valid_uid = 1
mail_location = maildir:~/Maildir
passdb {
  driver = static
  args = password=secret
}
userdb {
  driver = static
  args = uid=nobody gid=nogroup home=/run/work/mail/%u
}
service imap-login {
  inet_listener imap {
    port = 1143
  }
  inet_listener imaps {
    port = 0
  }
}
END
",
        port: 1143,
        server: "exec dovecot -F -c /run/work/conf",
        held: "{ printf 'a login u secret\\r\\nb select inbox\\r\\nc idle\\r\\n'; cat; } | ncat 127.0.0.1 1143",
        work: "
            curl -sS -u u:secret -T letter imap://127.0.0.1:1143/INBOX
            curl -sS -u u:secret 'imap://127.0.0.1:1143/INBOX;MAILINDEX=1'",
        except: &[],
    },
    Program {
        name: "openssh",
        what: "a process for each connection, with its own seccomp filter until the login",
        needs: "sshd ssh ssh-keygen",
        version: "ssh -V",
        build: "
ssh-keygen -q -t ed25519 -N '' -f key; cp key.pub authorized
printf '%s\\n' 'Port 2222' 'ListenAddress 127.0.0.1' 'HostKey /run/work/key' 'AuthorizedKeysFile /run/work/authorized' \
    'StrictModes no' 'PermitRootLogin yes' 'UsePAM no' 'PidFile none' 'TCPKeepAlive no' >sshd
printf '%s\\n' 'StrictHostKeyChecking no' 'UserKnownHostsFile /dev/null' 'LogLevel ERROR' 'IdentityFile /run/work/key' \
    'Port 2222' 'TCPKeepAlive no' >ssh",
        port: 2222,
        server: "mkdir -p /run/sshd; exec /usr/sbin/sshd -D -f /run/work/sshd",
        held: "exec ssh -F ssh root@127.0.0.1 sleep 60",
        work: "ssh -F ssh root@127.0.0.1 'echo logged in; exit 3' || echo $?",
        except: &[],
    },
    Program {
        name: "dropbear",
        what: "ssh, small",
        needs: "dropbear dbclient",
        version: "dropbear -V",
        build: "
dropbearkey -t ed25519 -f host >/dev/null
mkdir -p root/.ssh; dropbearkey -t ed25519 -f key | grep ^ssh- >root/.ssh/authorized_keys
chown -R root:root root; chmod -R go= root",
        port: 2222,
        server: "mount --bind root /root; exec dropbear -F -E -r host -p 127.0.0.1:2222 -P /run/work/pid",
        held: "exec dbclient -y -y -i key -p 2222 root@127.0.0.1 sleep 60",
        work: "dbclient -y -y -i key -p 2222 root@127.0.0.1 'echo logged in; exit 3' 2>/dev/null || echo $?",
        except: &[],
    },
    Program {
        name: "dnsmasq",
        what: "DNS over TCP; a process for each connection",
        needs: "dnsmasq dig ncat",
        version: "dnsmasq --version",
        build: ":",
        port: 5353,
        server: "
            exec dnsmasq -k -C /dev/null -p 5353 -a 127.0.0.1 -z -R -h -u nobody -x /run/work/pid \
                --address=/test.example/192.0.2.1",
        held: stay!("5353"),
        work: "dig +tcp +short -p 5353 @127.0.0.1 test.example",
        except: &[],
    },
    Program {
        name: "unbound",
        what: "DNS over TCP; chroot, another user",
        needs: "unbound dig ncat",
        version: "unbound -V",
        build: "
mkdir jail; cat >jail/conf <<'END'
server:
    interface: 127.0.0.1@5353
    chroot: /run/work/jail
    directory: /run/work/jail
    username: nobody
    pidfile: \"\"
    use-syslog: no
    do-daemonize: no
    tcp-idle-timeout: 60000
    module-config: iterator
    local-data: \"test.example. A 192.0.2.1\"
remote-control:
    control-enable: no
END
",
        port: 5353,
        server: "exec unbound -d -c /run/work/jail/conf",
        held: stay!("5353"),
        work: "dig +tcp +short -p 5353 @127.0.0.1 test.example",
        except: &[],
    },
    Program {
        name: "bind",
        what: "DNS over TCP; threads, capabilities dropped",
        needs: "named dig ncat",
        version: "named -v",
        build: "
mkdir -m 777 named; cat >named/conf <<'END'
options { directory \"/run/work/named\"; listen-on port 5353 { 127.0.0.1; }; listen-on-v6 { none; }; recursion no;
          pid-file none; session-keyfile none; dnssec-validation no; };
controls {};
zone test.example { type primary; file \"zone\"; };
END
printf '@ 60 SOA ns a 1 60 60 60 60\\n@ 60 NS ns\\n@ 60 A 192.0.2.1\\nns 60 A 192.0.2.2\\n' >named/zone",
        port: 5353,
        server: "exec named -g -u nobody -c /run/work/named/conf",
        held: stay!("5353"),
        work: "dig +tcp +short -p 5353 @127.0.0.1 test.example; dig +tcp +noall +answer -p 5353 @127.0.0.1 test.example axfr",
        except: &[],
    },
    Program {
        name: "vsftpd",
        what: "FTP; chroot, another user, a second connection for data",
        needs: "vsftpd curl",
        version: "vsftpd -v 0>&1",
        build: concat!(
            pages!(),
            "chmod 755 www; cat >conf <<'END'
listen=YES
listen_address=127.0.0.1
listen_port=2121
background=NO
anonymous_enable=YES
anon_root=/run/work/www
secure_chroot_dir=/run/work/empty
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
END
mkdir empty"
        ),
        port: 2121,
        server: "exec vsftpd /run/work/conf",
        held: "exec curl -sS --rate 1/m -o first -o second ftp://127.0.0.1:2121/page ftp://127.0.0.1:2121/page",
        work: "curl -sS ftp://127.0.0.1:2121/index.html; curl -sS ftp://127.0.0.1:2121/page | sha256sum",
        except: &[],
    },
    Program {
        name: "git",
        what: "its server and a clone; a process for each connection",
        needs: "git",
        version: "git --version",
        build: "
git init -q tree; cd tree; echo hello >file; git add file
git -c user.name=a -c user.email=a@test.example commit -q -m first; cd ..; git clone -q --bare tree bare.git
printf '[uploadpack]\\n\\tpackObjectsHook = /run/work/hook\\n[safe]\\n\\tdirectory = *\\n' >gitconfig
printf '#!/bin/sh\\n[ ! -e /run/work/hold ] || sleep 60\\nexec \"$@\"\\n' >hook; chmod +x hook",
        port: 9418,
        server: "
            GIT_CONFIG_GLOBAL=/run/work/gitconfig exec git daemon --reuseaddr --export-all --base-path=/run/work \
                --listen=127.0.0.1 --port=9418",
        held: "touch hold; exec git clone -q git://127.0.0.1/bare.git held.git",
        work: "rm hold; git clone -q git://127.0.0.1/bare.git clone; cat clone/file; git -C clone log --format=%s",
        except: &[],
    },
    Program {
        name: "rsync",
        what: "server and client; chroot, another user",
        needs: "rsync",
        version: "rsync --version",
        build: concat!(
            pages!(),
            "chmod 755 www; printf '%s\\n' 'use chroot = yes' 'uid = nobody' 'gid = nogroup' '[files]' 'path = /run/work/www' >conf"
        ),
        port: 8730,
        server: "exec rsync --daemon --no-detach --port=8730 --address=127.0.0.1 --config=/run/work/conf",
        held: "exec rsync --bwlimit=1 rsync://127.0.0.1:8730/files/page slow",
        work: "rsync -rt rsync://127.0.0.1:8730/files/ copy/; cd copy; sha256sum index.html page",
        except: &[],
    },
    Program {
        name: "wget",
        what: "a client of nginx",
        needs: "nginx wget",
        version: "wget --version",
        build: nginx!(),
        port: WEB_PORT,
        server: "exec nginx -c /run/work/conf",
        held: "exec wget -q --wait=60 -O /dev/null http://127.0.0.1:8080/page http://127.0.0.1:8080/page",
        work: "wget -qO- http://127.0.0.1:8080/index.html; wget -qO- http://127.0.0.1:8080/page | sha256sum",
        except: &[],
    },
    Program {
        name: "socat",
        what: "a process for each connection, and a program behind it",
        needs: "socat",
        version: "socat -V | sed 1d",
        build: ":",
        port: ECHO_PORT,
        server: "exec socat TCP-LISTEN:7000,bind=127.0.0.1,reuseaddr,fork EXEC:cat",
        held: "exec socat - TCP:127.0.0.1:7000",
        work: "echo hello | socat - TCP:127.0.0.1:7000",
        except: &[],
    },
    Program {
        name: "ncat",
        what: "a program behind each connection",
        needs: "ncat",
        version: "ncat --version",
        build: ":",
        port: ECHO_PORT,
        server: "exec ncat -lk 127.0.0.1 7000 -e /bin/cat",
        held: stay!("7000"),
        work: talk!("7000", "hello\\n"),
        except: &[],
    },
    Program {
        name: "env",
        what: "ncat; `env -i` starts both ends with an empty environment",
        needs: "ncat",
        version: "env --version",
        build: ":",
        port: ECHO_PORT,
        server: "exec env -i /usr/bin/ncat -lk 127.0.0.1 7000 -e /bin/cat",
        held: "exec env -i /usr/bin/ncat 127.0.0.1 7000",
        work: "printf 'hello\\n' | env -i /usr/bin/ncat 127.0.0.1 7000",
        except: &[(PRELOAD, "The wrapper removes LD_PRELOAD. `ka run` uses seccomp for wrappers that it knows")],
    },
    Program {
        name: "systemd",
        what: "systemd-socket-activate starts a program that inherits its connection and creates no socket",
        needs: "systemd-socket-activate ncat",
        version: "systemd-socket-activate --version",
        build: ":",
        port: ECHO_PORT,
        server: "exec systemd-socket-activate -l 127.0.0.1:7000 -a --inetd /bin/cat",
        held: stay!("7000"),
        work: talk!("7000", "hello\\n"),
        except: &[],
    },
    Program {
        name: "busybox",
        what: "httpd and wget in one static program",
        needs: "busybox-static",
        version: "busybox",
        build: pages!(),
        port: WEB_PORT,
        server: "exec busybox httpd -f -p 127.0.0.1:8080 -h www",
        held: "exec busybox nc 127.0.0.1 8080",
        work: "busybox wget -qO- http://127.0.0.1:8080/index.html; busybox wget -qO- http://127.0.0.1:8080/page | sha256sum",
        except: &[(PRELOAD, "A static program has no loader that could load the shim. `ka run` uses seccomp for it")],
    },
    Program {
        name: "chromium",
        what: "browser; its processes pass descriptors to renderers whose seccomp filters kill on getsockopt(2)",
        needs: "chromium python3",
        version: "chromium --version",
        build: "cat >server.py <<'END'
import http.server, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        page = b'<p>hello</p>\\n'
        self.send_response(200)
        self.send_header('Content-Type', 'text/html')
        self.send_header('Content-Length', str(len(page)))
        self.end_headers()
        if self.path == '/hold':
            time.sleep(60)
        self.wfile.write(page)

http.server.ThreadingHTTPServer(('127.0.0.1', 8080), Handler).serve_forever()
END
cat >browse <<'END'
chmod 777 .
export HOME=$(setpriv --reuid www-data --regid www-data --clear-groups mktemp -d -p .)
exec setpriv --reuid www-data --regid www-data --clear-groups chromium --headless --disable-gpu --no-first-run \\
    --disable-background-networking --disable-component-update --disable-sync --user-data-dir=$HOME/data \\
    --dump-dom http://127.0.0.1:8080/$1
END
",
        port: WEB_PORT,
        server: "exec python3 server.py 2>server.log",
        held: "set -- hold; . ./browse",
        work: "set -- page; . ./browse",
        except: &[],
    },
    Program {
        name: "python",
        what: "asyncio",
        needs: "python3",
        version: "python3 --version",
        build: "cat >echo.py <<'END'
import asyncio, sys

async def serve(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()

async def main():
    if sys.argv[1] == 'server':
        await (await asyncio.start_server(serve, '127.0.0.1', 7000)).serve_forever()
    reader, writer = await asyncio.open_connection('127.0.0.1', 7000)
    writer.write(b'hello\\n')
    print((await reader.readline()).decode(), end='', flush=True)
    if sys.argv[1] == 'hold':
        await asyncio.sleep(60)

asyncio.run(main())
END
",
        port: ECHO_PORT,
        server: "exec python3 echo.py server",
        held: "exec python3 echo.py hold",
        work: "python3 echo.py client",
        except: &[],
    },
    Program {
        name: "node",
        what: "libuv",
        needs: "node",
        version: "node --version",
        build: "cat >echo.js <<'END'
const net = require('net');
if (process.argv[2] === 'server') {
  net.createServer((socket) => socket.pipe(socket)).listen(7000, '127.0.0.1');
} else {
  const client = net.connect(7000, '127.0.0.1', () => client.write('hello\\n'));
  client.on('data', (data) => {
    process.stdout.write(data);
    if (process.argv[2] !== 'hold') client.end();
  });
}
END
",
        port: ECHO_PORT,
        server: "exec node echo.js server",
        held: "exec node echo.js hold",
        work: "node echo.js client",
        except: &[],
    },
    Program {
        name: "ruby",
        what: "a thread for each connection",
        needs: "ruby",
        version: "ruby --version",
        build: "cat >echo.rb <<'END'
require 'socket'
if ARGV[0] == 'server'
  server = TCPServer.new('127.0.0.1', 7000)
  loop { Thread.new(server.accept) { |client| while line = client.gets do client.write(line) end; client.close } }
end
client = TCPSocket.new('127.0.0.1', 7000)
client.write(\"hello\\n\")
puts client.gets
sleep 60 if ARGV[0] == 'hold'
END
",
        port: ECHO_PORT,
        server: "exec ruby echo.rb server",
        held: "exec ruby echo.rb hold",
        work: "ruby echo.rb client",
        except: &[],
    },
    Program {
        name: "perl",
        what: "a process for each connection",
        needs: "perl",
        version: "perl --version",
        build: "cat >echo.pl <<'END'
use strict; use IO::Socket::INET; $| = 1; $SIG{CHLD} = 'IGNORE';
if ($ARGV[0] eq 'server') {
    my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1:7000', Listen => 5, ReuseAddr => 1) or die $!;
    while (my $client = $server->accept) {
        next if fork;
        while (my $line = <$client>) { print $client $line; $client->flush; }
        exit;
    }
}
my $client = IO::Socket::INET->new(PeerAddr => '127.0.0.1:7000') or die $!;
print $client \"hello\\n\"; $client->flush; print scalar <$client>;
sleep 60 if $ARGV[0] eq 'hold';
END
",
        port: ECHO_PORT,
        server: "exec perl echo.pl server",
        held: "exec perl echo.pl hold",
        work: "perl echo.pl client",
        except: &[],
    },
    Program {
        name: "php",
        what: "its web server, and streams",
        needs: "php",
        version: "php --version",
        build: "mkdir www; cat >www/index.php <<'END'
<?php echo 'hello ', 6 * 7, \"\\n\";
END
cat >client.php <<'END'
<?php
if ($argv[1] === 'hold') { $client = stream_socket_client('tcp://127.0.0.1:8080'); sleep(60); }
echo file_get_contents('http://127.0.0.1:8080/index.php');
END
",
        port: WEB_PORT,
        server: "exec php -S 127.0.0.1:8080 -t www",
        held: "exec php client.php hold",
        work: "php client.php client",
        except: &[],
    },
    Program {
        name: "php-curl",
        what: "PHP's curl and pgsql extensions, which PHP opens with RTLD_DEEPBIND",
        needs: "php php-curl php-pgsql nginx",
        version: "php --version",
        build: concat!(
            nginx!(),
            "cat >client.php <<'END'
<?php
$client = curl_init('http://127.0.0.1:8080/index.html');
curl_setopt($client, CURLOPT_TCP_KEEPALIVE, 0);
curl_exec($client);
if ($argv[1] === 'hold') { sleep(60); }
else { echo pg_connect('host=127.0.0.1 port=1') === false ? 'refused' : 'connected', \"\\n\"; }
END
"
        ),
        port: WEB_PORT,
        server: "exec nginx -c /run/work/conf",
        held: "exec php client.php hold",
        work: "php -d display_errors=0 -d log_errors=0 client.php work",
        except: &[],
    },
    Program {
        name: "ctypes",
        what: "Python's ctypes looks up the socket functions in the C library's handle",
        needs: "python3",
        version: "python3 --version",
        build: "cat >echo.py <<'END'
import ctypes, socket, sys, time
libc = ctypes.CDLL('libc.so.6')
address = (ctypes.c_uint8 * 16)(2, 0, 7000 >> 8, 7000 & 255, 127, 0, 0, 1)
if sys.argv[1] == 'server':
    one = ctypes.c_int(1)
    server = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    libc.setsockopt(server, socket.SOL_SOCKET, socket.SO_REUSEADDR, ctypes.byref(one), 4)
    assert libc.bind(server, address, 16) == 0 and libc.listen(server, 16) == 0
    clients = []
    while True:
        clients.append(socket.socket(fileno=libc.accept4(server, None, None, socket.SOCK_CLOEXEC)))
        clients[-1].sendall(clients[-1].recv(100))
client = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
assert libc.connect(client, address, 16) == 0
client = socket.socket(fileno=client)
client.sendall(b'hello\\n')
print(client.recv(100))
if sys.argv[1] == 'hold': time.sleep(60)
END
",
        port: ECHO_PORT,
        server: "exec python3 echo.py server",
        held: "exec python3 echo.py hold",
        work: "python3 echo.py work",
        except: &[],
    },
    Program {
        name: "java",
        what: "sockets of java.net, which are IPv6 sockets",
        needs: "java javac",
        version: "java --version",
        build: "cat >Echo.java <<'END'
import java.io.*;
import java.net.*;
public class Echo {
    public static void main(String[] args) throws Exception {
        if (args[0].equals(\"server\")) {
            ServerSocket server = new ServerSocket(7000, 50, InetAddress.getByName(\"127.0.0.1\"));
            for (;;) {
                Socket client = server.accept();
                new Thread(() -> { try (client) { client.getInputStream().transferTo(client.getOutputStream()); }
                                   catch (IOException error) { } }).start();
            }
        }
        Socket client = new Socket(\"127.0.0.1\", 7000);
        client.getOutputStream().write(\"hello\\n\".getBytes());
        System.out.println(new BufferedReader(new InputStreamReader(client.getInputStream())).readLine());
        if (args[0].equals(\"hold\")) Thread.sleep(60000);
    }
}
END
javac -d . Echo.java",
        port: ECHO_PORT,
        server: "exec java -Xmx64m -XX:+UseSerialGC -Xshare:auto -cp . Echo server",
        held: "exec java -Xmx64m -XX:+UseSerialGC -cp . Echo hold",
        work: "java -Xmx64m -XX:+UseSerialGC -cp . Echo client",
        except: &[],
    },
    Program {
        name: "go",
        what: "linked to the C library (cgo), with its own keepalive of 15 s",
        needs: "go cc",
        version: "go version",
        build: concat!(go!(), "CGO_ENABLED=1 go build -o echo echo.go; rm -rf cache\n"),
        port: ECHO_PORT,
        server: "exec ./echo server",
        held: "exec ./echo hold",
        work: "./echo client",
        except: &[GO],
    },
    Program {
        name: "go-static",
        what: "as `go`, but static",
        needs: "go",
        version: "go version",
        build: concat!(go!(), "CGO_ENABLED=0 go build -o echo echo.go; rm -rf cache\n"),
        port: ECHO_PORT,
        server: "exec ./echo server",
        held: "exec ./echo hold",
        work: "./echo client",
        except: &[GO],
    },
    Program {
        name: "pascal",
        what: "Free Pascal. Its runtime calls the kernel directly and needs the C library only for threads",
        needs: "fpc ncat",
        version: "fpc -iV",
        build: "cat >echo.pas <<'END'
program echo;
uses cthreads, baseunix, sockets;
var
  own, client: longint;
  address: TInetSockAddr;
  buffer: array[0..4095] of byte;
  size: ssize_t;
begin
  own := fpSocket(AF_INET, SOCK_STREAM, 0);
  fillchar(address, sizeof(address), 0);
  address.sin_family := AF_INET;
  address.sin_port := htons(7000);
  address.sin_addr.s_addr := htonl($7f000001);
  if paramstr(1) = 'server' then
  begin
    client := 1;
    fpSetSockOpt(own, SOL_SOCKET, SO_REUSEADDR, @client, sizeof(client));
    if (fpBind(own, @address, sizeof(address)) <> 0) or (fpListen(own, 5) <> 0) then halt(1);
    fpSignal(SIGCHLD, SignalHandler(SIG_IGN));
    repeat
      client := fpAccept(own, nil, nil);
      if (client >= 0) and (fpFork = 0) then
      begin
        repeat
          size := fpRecv(client, @buffer, sizeof(buffer), 0);
          if size > 0 then fpSend(client, @buffer, size, 0);
        until size <= 0;
        halt(0);
      end;
      if client >= 0 then fpClose(client);
    until false;
  end;
  if fpConnect(own, @address, sizeof(address)) <> 0 then halt(1);
  buffer[0] := ord('x');
  fpSend(own, @buffer, 1, 0);
  size := fpRecv(own, @buffer, 1, 0);
  writeln('came back: ', size);
  flush(output);
  if paramstr(1) = 'hold' then fpRecv(own, @buffer, 1, 0);
end.
END
fpc -O2 -v0 echo.pas >compiled 2>&1 || { cat compiled; exit 1; }",
        port: ECHO_PORT,
        server: "exec ./echo server",
        held: "exec ./echo hold",
        work: "./echo client",
        except: &[(PRELOAD, "Its runtime calls the kernel without the C library. `ka run` uses seccomp for it")],
    },
    Program {
        name: "lua",
        what: "LuaSocket",
        needs: "lua5.4 lua-socket",
        version: "lua5.4 -v",
        build: "cat >echo.lua <<'END'
local socket = require 'socket'
if arg[1] == 'server' then
  local server, open = assert(socket.bind('127.0.0.1', 7000)), {}
  open[1] = server
  while true do
    for _, one in ipairs(socket.select(open, nil)) do
      if one == server then
        open[#open + 1] = server:accept()
      else
        local line = one:receive()
        if line then one:send(line .. '\\n') else
          for i = 2, #open do if open[i] == one then table.remove(open, i) break end end
          one:close()
        end
      end
    end
  end
end
local client = assert(socket.connect('127.0.0.1', 7000))
client:send('hello\\n')
print(client:receive())
if arg[1] == 'hold' then socket.sleep(60) end
END
",
        port: ECHO_PORT,
        server: "exec lua5.4 echo.lua server",
        held: "exec lua5.4 echo.lua hold",
        work: "lua5.4 echo.lua client",
        except: &[],
    },
    Program {
        name: "tcl",
        what: "its event loop",
        needs: "tclsh",
        version: "echo 'puts \"Tcl [info patchlevel]\"' | tclsh",
        build: "cat >echo.tcl <<'END'
proc serve {channel address port} { fconfigure $channel -buffering line; fileevent $channel readable [list echo $channel] }
proc echo {channel} { if {[gets $channel line] < 0} { close $channel } else { puts $channel $line } }
if {[lindex $argv 0] eq {server}} { socket -server serve -myaddr 127.0.0.1 7000; vwait forever }
set client [socket 127.0.0.1 7000]
fconfigure $client -buffering line
puts $client hello
puts [gets $client]
flush stdout
if {[lindex $argv 0] eq {hold}} { after 60000 }
END
",
        port: ECHO_PORT,
        server: "exec tclsh echo.tcl server",
        held: "exec tclsh echo.tcl hold",
        work: "tclsh echo.tcl client",
        except: &[],
    },
    Program {
        name: "erlang",
        what: "gen_tcp",
        needs: "erl",
        version: "erl -noshell -eval 'io:format(\"Erlang/OTP ~s~n\", [erlang:system_info(otp_release)]), halt().'",
        build: "cat >echo.erl <<'END'
-module(echo).
-export([main/1]).
main([server]) ->
    {ok, Server} = gen_tcp:listen(7000, [binary, {ip, {127, 0, 0, 1}}, {packet, line}, {active, false}, {reuseaddr, true}]),
    serve(Server);
main([What]) ->
    {ok, Client} = gen_tcp:connect({127, 0, 0, 1}, 7000, [binary, {packet, line}, {active, false}]),
    ok = gen_tcp:send(Client, \"hello\\n\"),
    {ok, Line} = gen_tcp:recv(Client, 0),
    io:format(\"~s\", [Line]),
    case What of hold -> timer:sleep(60000); client -> ok end,
    halt().
serve(Server) ->
    {ok, Client} = gen_tcp:accept(Server),
    spawn(fun() -> receive ready -> echo(Client) end end) ! ready,
    serve(Server).
echo(Client) ->
    case gen_tcp:recv(Client, 0) of
        {ok, Line} -> gen_tcp:send(Client, Line), echo(Client);
        _ -> gen_tcp:close(Client)
    end.
END
erlc echo.erl",
        port: ECHO_PORT,
        server: "exec erl -noshell -noinput -s echo main server",
        held: "exec erl -noshell -noinput -s echo main hold",
        work: "erl -noshell -noinput -s echo main client",
        except: &[],
    },
];
