//! Tests include/ka.hpp: compilers accept it under each C++ standard, its functions work as documented, and connections
//! of the servers in bindings/cpp have the policy.

use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use ka_test::artifact::release;
use ka_test::child::{stderr, succeed};
use ka_test::compiler::{Linkage, compile};
use ka_test::example::Server;
use ka_test::path::{root, scratch};
use ka_test::socket::{RTO_MAX, established, fresh, option};

const STRICT: [&str; 9] = [
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wsign-conversion",
    "-Wshadow",
    "-Wold-style-cast",
    "-Wundef",
    "-Werror",
];

/// Compiles tests/cpp/hpp.cpp with these options and runs it.
fn test_every_function(compiler: &str, options: &[&str]) {
    let source = root().join("tests/cpp/hpp.cpp");
    let mut command = Command::new(compiler);
    let program = compile(command.args(options).args(STRICT).arg("-O1"), &source, Linkage::Static);
    succeed(&mut Command::new(program));
}

const STANDARDS: [&[&str]; 5] = [
    &["-std=c++17"],
    &["-std=c++20"],
    &["-std=c++2b"],
    &["-std=c++17", "-fno-exceptions", "-fno-rtti"],
    &["-std=c++20", "-fno-exceptions", "-fno-rtti"],
];

#[test]
fn every_function_works_with_gcc_and_without_warnings() {
    for options in STANDARDS {
        test_every_function("g++", options);
    }
}

#[test]
fn every_function_works_with_clang_and_without_warnings() {
    for options in STANDARDS {
        test_every_function("clang++", options);
    }
}

/// For example, a reference to the policy of a chain of setters must not dangle.
#[test]
fn sanitizers_find_no_fault() {
    let options = ["-std=c++17", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    for compiler in ["g++", "clang++"] {
        test_every_function(compiler, &options);
    }
}

/// The importing program runs too.
#[test]
fn modules_can_include_the_header_in_their_global_fragment() {
    let folder = root().join("tests/cpp");
    for exceptions in ["-fexceptions", "-fno-exceptions"] {
        for (compiler, options) in
            [("g++", &["-std=c++20", "-fmodules-ts"][..]), ("clang++", &["-std=c++20"])]
        {
            // gcc writes the compiled module into the working directory, and clang reads it from there.
            let work = scratch("module");
            std::fs::create_dir(&work).unwrap();
            let run = |arguments: &[&str], files: &[PathBuf]| {
                let mut command = Command::new(compiler);
                command
                    .current_dir(&work)
                    .args(options)
                    .arg(exceptions)
                    .args(["-Wall", "-Wextra", "-Werror", "-I"]);
                succeed(command.arg(root().join("include")).args(arguments).args(files));
            };
            let (module, program) = (folder.join("module.cpp"), folder.join("import.cpp"));
            let compiled = if compiler == "g++" {
                run(&["-c", "-o", "module.o"], &[module]);
                work.join("module.o")
            } else {
                run(&["--precompile", "-x", "c++-module", "-o", "keepalive.pcm"], &[module]);
                work.join("keepalive.pcm")
            };
            let modules = if compiler == "g++" { &[][..] } else { &["-fprebuilt-module-path=."] };
            run(&[modules, &["-o", "import"]].concat(), &[program, compiled, release().join("libka.a")]);
            succeed(&mut Command::new(work.join("import")));
        }
    }
}

/// A setter throws in one file, and makes the policy invalid in the other. Neither file may get the code of the other.
#[test]
fn files_with_and_without_exceptions_can_be_linked_in_any_order() {
    let source = root().join("tests/cpp/mixed.cpp");
    for compiler in ["g++", "clang++"] {
        let compile_object = |options: &[&str]| {
            let object = scratch("mixed.o");
            let mut command = Command::new(compiler);
            // Without optimisation nothing is inlined, so the linker chooses among the functions.
            command.args(["-std=c++17", "-O0", "-c", "-I"]).arg(root().join("include")).args(options);
            succeed(command.arg("-o").arg(&object).arg(&source));
            object
        };
        let objects = [compile_object(&[]), compile_object(&["-fno-exceptions", "-DWITHOUT"])];
        for order in [[0, 1], [1, 0]] {
            let program = scratch("mixed");
            let mut command = Command::new(compiler);
            command.arg("-o").arg(&program).args(order.map(|n| &objects[n])).arg(release().join("libka.a"));
            succeed(&mut command);
            succeed(&mut Command::new(program));
        }
    }
}

/// Compiles these statements. If `reason` is not empty, the compilers must reject them with a message that contains it.
fn test_mistake(options: &[&str], code: &str, reason: &str) {
    let source = scratch("mistake.cpp");
    std::fs::write(&source, format!("#include <ka.hpp>\nint main() {{ {code} }}\n")).unwrap();
    for compiler in ["g++", "clang++"] {
        let mut command = Command::new(compiler);
        command
            .args(["-std=c++17", "-fsyntax-only", "-Werror", "-x", "c++", "-I"])
            .arg(root().join("include"));
        let output = command.args(options).arg(&source).output().unwrap();
        let messages = stderr(&output);
        assert_eq!(output.status.success(), reason.is_empty(), "{compiler} {options:?}: {code}\n{messages}");
        assert!(messages.contains(reason), "{compiler} {options:?}: {code}\n{messages}");
    }
}

#[test]
fn compilers_reject_mistakes() {
    for (code, reason) in [
        ("constexpr auto p = ka::policy{}.idle(std::chrono::milliseconds{1500});", "reject"),
        ("constexpr auto p = ka::policy{}.cnt(128);", "reject"),
        ("auto p = ka::policy{}.idle(60);", "no matching"),
        ("std::error_code ec; ka::reaper r{std::chrono::seconds{1}, ec}; ka::reaper s = r;", "deleted"),
        ("auto p = ka::policy{}.cnt(std::chrono::seconds{5});", "cnt"),
        // An ignored result.
        ("ka::policy{}.idle(std::chrono::seconds{60});", "nodiscard"),
        ("std::error_code ec; ka::parse(\"60,10,5\", ec);", "nodiscard"),
        ("std::error_code ec; ka::plan_preset(\"aws-nlb\", ec);", "nodiscard"),
        // Calls with an error code, which must not chain.
        ("std::error_code ec; ka::policy p; p.cnt(5, ec).cnt(6, ec);", "void"),
        ("std::error_code ec; ka::policy{}.cnt(5, ec);", "cnt"),
        // Only bool: KA_OFF is 2, which converts to true.
        ("ka::policy p; p.keepalive(KA_OFF);", "no matching"),
        ("ka::policy p; p.keepalive(\"off\");", "no matching"),
        ("ka::policy p; p.keepalive(false);", ""),
        ("auto p = ka::policy{}.idle(std::chrono::seconds{60});", ""),
    ] {
        test_mistake(&[], code, reason);
    }
    // Without exceptions a bad value makes a policy invalid at run time, but still must not compile in a constant.
    test_mistake(&["-fno-exceptions"], "constexpr auto p = ka::policy{}.cnt(128);", "reject");
    test_mistake(&["-fno-exceptions"], "constexpr auto p = ka::policy{}.cnt(127);", "");
}

/// Starts a server of bindings/cpp. Its connections must have the policy of the listener: ss(8) shows the timer.
fn test_server(name: &str) {
    release();
    let folder = root().join("bindings/cpp");
    succeed(Command::new("make").arg("-C").arg(&folder).arg(name));
    let program: &Path = &folder.join(name);
    let (mut server, _) = Server::spawn(Command::new(program).arg("0"));
    let mut connection = server.connect();
    connection.write_all(b"hello").unwrap();
    let mut echoed = [0; 5];
    connection.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"hello");
    // The policy does not name rto_max, so it has the value of a new socket. Before Linux 6.15 it is not printed.
    let rto_max = option(fresh().as_raw_fd(), libc::IPPROTO_TCP, RTO_MAX);
    let rto_max = rto_max.map_or_else(|_| String::new(), |value| format!(",rto_max={value}"));
    assert_eq!(server.line(), format!("accepted: idle=60,intvl=10,cnt=5,user_timeout=0{rto_max}"));

    let filter = format!("sport = :{}", server.port);
    let sockets = established(&filter);
    assert_eq!(sockets.lines().count(), 1, "{sockets}");
    assert!(
        sockets.contains("timer:(keepalive,59sec,0)") || sockets.contains("timer:(keepalive,1min,0)"),
        "{sockets}"
    );
    // The client has no keepalive, so the timer is the server's.
    let theirs = established(&filter.replace("sport", "dport"));
    assert!(!theirs.contains("keepalive"), "{theirs}");

    drop(connection);
    assert!(server.line().starts_with("ended: "), "the server did not notice the end of the connection");
    // The server goes on.
    server.connect().write_all(b"again").unwrap();
    assert!(server.line().starts_with("accepted: "));
}

#[test]
fn connections_of_the_asio_server_have_the_policy() {
    test_server("asio_server");
}

#[test]
fn connections_of_the_libuv_server_have_the_policy() {
    test_server("uv_server");
}
