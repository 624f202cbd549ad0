//! Processes: none is left behind, none of somebody else is hit, and no death is missed.
//!
//! Some tests need a host of their own, which is this program again with one ignored test.

mod support;

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use embed_bridge::{Options, Parameters};
use support::{but, fake, interpreter, is_running, pid, spawn, vector, wait_until};

/// Start a host: an ignored test of this program, behind a command that has its own idea of signals.
fn host(launcher: &[OsString], test: &str) -> Child {
    let this = std::env::current_exe().expect("this program");
    let mut line = launcher.to_vec();
    line.push(this.into());
    line.extend(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"].map(Into::into));
    Command::new(&line[0]).args(&line[1..]).stdout(Stdio::piped()).spawn().expect("a host")
}

/// Put a launcher before the worker that stays for as long as the worker does.
fn launched(mut options: Options) -> Options {
    let script = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))";
    let launcher = [interpreter(), "-c".into(), script.into()];
    options.command = launcher.into_iter().chain(options.command).collect();
    options
}

/// Return what a host says behind a word, on one line of its own.
fn said(host: &mut Child, word: &str) -> String {
    let lines = BufReader::new(host.stdout.as_mut().expect("a pipe")).lines();
    let said = lines.map(|line| line.expect("text")).find_map(|line| Some(line.split_once(word)?.1.trim().to_owned()));
    said.expect("the host says it")
}

#[test]
fn no_worker_outlives_a_host_that_is_killed() {
    let mut host = host(&[], "a_host_with_a_call_in_flight");
    let worker: u32 = said(&mut host, "worker:").parse().expect("a number");
    assert!(is_running(worker));
    host.kill().expect("SIGKILL");
    host.wait().expect("its end");
    wait_until("the worker follows its host", || !is_running(worker));
}

#[test]
#[ignore = "a host that is killed by another test"]
fn a_host_with_a_call_in_flight() {
    // Neither the end of its input nor the end of a launcher that stays tells this worker.
    let bridge = spawn(launched(fake(&["--latency=3600", "--ignore-eof"])));
    let call = bridge.submit(vec!["in flight".into()], Parameters::new()).expect("room");
    println!("\nworker: {}", pid(&bridge));
    drop(call.wait());
}

#[test]
fn a_launcher_is_not_taken_for_the_worker() {
    let bridge = spawn(launched(fake(&[])));
    let worker = pid(&bridge);
    assert_eq!(bridge.stats().pid, Some(worker), "the worker's number, not the launcher's");
    assert_eq!(bridge.embed(&["text"]).expect("vectors").vectors, vector("text"));
    bridge.close();
    assert!(!is_running(worker));
}

#[test]
#[cfg(target_os = "linux")]
fn the_workers_environment_holds_what_it_needs_and_no_secret() {
    std::env::set_var("DATABASE_PASSWORD", "secret");
    std::env::set_var("OMP_NUM_THREADS", "1");
    let bridge = spawn(but(fake(&[]), |options| options.env.push(("WANTED".into(), "yes".into()))));
    let environment = std::fs::read(format!("/proc/{}/environ", pid(&bridge))).expect("its environment");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let has = |variable: &str| environment.split('\0').any(|found| found == variable);
    assert!(has("OMP_NUM_THREADS=1") && has("ORT_DISABLE_TELEMETRY=1") && has("WANTED=yes"), "{environment}");
    assert!(!environment.contains("secret"));
    let arguments = std::fs::read(format!("/proc/{}/cmdline", pid(&bridge))).expect("its arguments");
    assert!(String::from_utf8_lossy(&arguments).contains("--supervised"), "a command of the host's own keeps it");
}

#[test]
fn a_banner_without_a_newline_swallows_nothing_and_is_quoted_where_the_start_fails() {
    let behind = |banner: &str, options: Options| {
        let run = "sys.stdout.flush(); sys.exit(subprocess.call(sys.argv[1:]))";
        let script = format!("import subprocess, sys; sys.stdout.write('{banner}'); {run}");
        let launcher = [interpreter(), "-c".into(), script.into()];
        let command = options.command.clone();
        but(options, |options| options.command = launcher.into_iter().chain(command).collect())
    };
    let bridge = spawn(behind("Loading model ... ", fake(&[])));
    assert_eq!(bridge.embed(&["text"]).expect("vectors").vectors, vector("text"));
    assert_eq!(bridge.stats().restarts, 0);

    let never = but(fake(&["--fail-start=1"]), |options| options.restart_budget = 1.0);
    let error = spawn(behind("an \\033[31mold shell\\n", never)).info().expect_err("never ready");
    let detail = &error.exit().expect("how it ended").detail;
    assert!(detail.contains("something else than answers") && detail.contains("old shell"), "{detail}");
    assert!(!detail.contains('\u{1b}'), "{detail:?}");
}

/// Hosts that reap what is not theirs, and programs that become others: there is no such thing on Windows.
#[cfg(unix)]
mod posix {
    use std::time::Duration;

    use embed_bridge::{Cause, Error, Parameters};

    use super::support::{but, count_file, fake, interpreter, kill, path, pid, pid_in, spawn, wait_until};
    use super::{host, said};

    #[test]
    fn a_host_that_ignores_the_end_of_its_children_sees_deaths_and_believes_no_status_zero() {
        // Ignored signals are inherited through exec.
        let script =
            "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])";
        let launcher = [interpreter(), "-c".into(), script.into()];
        let mut host = host(&launcher, "posix::a_host_that_ignores_sigchld");
        assert_eq!(said(&mut host, "ended:"), "well");
        assert!(host.wait().expect("its end").success());
    }

    #[test]
    #[ignore = "a host that another test starts with SIGCHLD ignored"]
    fn a_host_that_ignores_sigchld() {
        let options = but(fake(&["--kill-after=0:SEGV"]), |options| options.replay = false);
        let bridge = spawn(options);
        let Err(Error::WorkerDied(exit)) = bridge.embed(&["lost"]) else { panic!("a death") };
        assert_eq!((exit.status, exit.cause), (None, Cause::Exited), "the system has thrown the status away");
        drop(bridge);
        println!("\nended: well"); // not reached after a failed assertion
    }

    #[test]
    fn a_host_that_waits_for_any_child_loses_no_call() {
        let mut host = host(&[], "posix::a_host_that_waits_for_any_child");
        assert_eq!(said(&mut host, "ended:"), "well");
        assert!(host.wait().expect("its end").success());
    }

    #[test]
    #[ignore = "a host that another test starts: it takes the statuses of all its children"]
    fn a_host_that_waits_for_any_child() {
        let bridge = spawn(fake(&["--latency=0.01"]));
        std::thread::spawn(|| loop {
            let _ = rustix::process::wait(rustix::process::WaitOptions::empty());
        });
        for round in 1..=5 {
            let call = bridge.submit(vec!["text".into()], Parameters::new()).expect("room");
            assert!(kill(pid(&bridge)));
            assert_eq!(call.wait().expect("vectors").vectors, bridge.embed(&["text"]).expect("vectors").vectors);
            wait_until("a new worker", || bridge.stats().restarts == round);
        }
        bridge.close();
        println!("\nended: well"); // not reached after a failed assertion
    }

    #[test]
    fn a_death_is_noticed_although_a_process_of_another_group_holds_the_pipes() {
        let file = count_file();
        let script = "import os, subprocess, sys; \
            child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'], start_new_session=True); \
            open(sys.argv[1], 'w').write(str(child.pid)); os.execv(sys.argv[2], sys.argv[2:])";
        let mut options = fake(&["--latency=3600"]);
        let launcher = [interpreter(), "-c".into(), script.into(), path(&file).into()];
        options.command = launcher.into_iter().chain(options.command).collect();
        // Without pings, and with a pipe that stays open, only the wait for the process can tell.
        (options.replay, options.ping_every) = (false, Duration::MAX);
        let bridge = spawn(options);
        let call = bridge.submit(vec!["lost".into()], Parameters::new()).expect("room");
        let worker = pid(&bridge);
        wait_until("it is in flight", || bridge.stats().in_flight > 0);
        assert!(kill(worker));
        let outcome = call.wait().expect_err("a death");
        assert!(kill(pid_in(&file)), "it was there all the time");
        assert_eq!(outcome.kind(), "worker_died");
    }
}
