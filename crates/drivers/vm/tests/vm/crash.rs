//! Machines whose daemon is killed: what another process starts, this one finds.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::guest::Bench;
use haar_vm::{Driver, Error, RunState};

const FOLDER: &str = "HAAR_TEST_FOLDER";
const ID: &str = "HAAR_TEST_ID";

/// The daemon of these tests: starts the machine, says so, and waits to be killed.
#[tokio::test]
#[ignore = "run by the tests below, in a process of its own"]
async fn daemon() {
    let (Ok(folder), Ok(id)) = (std::env::var(FOLDER), std::env::var(ID)) else { return };
    let bench = Bench::of(folder.into(), id);
    let vm = bench.driver().start(&bench.spec()).await.unwrap();
    println!("started {}", vm.pid());
    std::future::pending::<()>().await;
}

/// Another process of this program, as the daemon.
struct Daemon(Child);

impl Daemon {
    fn start(bench: &Bench) -> Daemon {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["crash::daemon", "--exact", "--ignored", "--nocapture"])
            .env(FOLDER, &bench.folder)
            .env(ID, &bench.id)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Daemon(child)
    }

    /// The process of the machine that it started.
    fn machine(&mut self) -> u32 {
        let said = BufReader::new(self.0.stdout.take().unwrap());
        let pid = said.lines().map_while(Result::ok).find_map(|line| {
            // The test program's own words may stand before it.
            line.split_once("started ").map(|(_, pid)| pid.trim().parse().unwrap())
        });
        pid.expect("the daemon said nothing")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
async fn a_machine_outlives_its_daemon() {
    let Some(bench) = Bench::new() else { return };
    let mut daemon = Daemon::start(&bench);
    let pid = daemon.machine();
    bench.console_reads("H").await;
    drop(daemon);

    let driver = bench.driver();
    assert_eq!(driver.list().unwrap(), [bench.id.as_str()]);
    let vm = driver.adopt(&bench.id).await.unwrap().unwrap();
    assert_eq!(vm.pid(), pid);
    assert_eq!(vm.state(), RunState::Running);
    assert_eq!(*vm.spec(), bench.spec());
    // Starting it is finding it.
    assert_eq!(driver.start(&bench.spec()).await.unwrap().pid(), pid);
    // It is the same guest: it has not booted again, and takes orders.
    crate::guest::type_in(&vm, "a").await;
    bench.console_reads("Ha").await;
    vm.powerdown().await.unwrap();
    crate::guest::state_becomes(&vm, RunState::GuestShutdown).await;
    bench.console_reads("HaP").await;
    let exit = vm.quit().await.unwrap();
    assert_eq!(exit.signal, None);
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn a_killed_machine_of_a_killed_daemon_is_seen() {
    let Some(bench) = Bench::new() else { return };
    let mut daemon = Daemon::start(&bench);
    let pid = daemon.machine();
    drop(daemon);
    let driver = bench.driver();
    let vm = driver.adopt(&bench.id).await.unwrap().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::SIGKILL).unwrap();
    tokio::time::timeout(Duration::from_secs(10), vm.exited()).await.unwrap();
    assert!(driver.adopt(&bench.id).await.unwrap().is_none());
    assert_eq!(driver.list().unwrap(), [bench.id.as_str()]);
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}

/// Kills a daemon that starts a machine, again and again, each time a little later, so that all of the start's steps
/// are cut. Whatever is left, there is at most one machine; the next daemon takes it up or starts it, or removes it.
#[tokio::test]
async fn a_start_may_be_cut_anywhere() {
    const ROUNDS: u32 = 40;
    let Some(bench) = Bench::new() else { return };
    let begun = Instant::now();
    let mut whole = Daemon::start(&bench);
    whole.machine();
    drop(whole);
    let takes = begun.elapsed();
    bench.driver().remove(&bench.id).await.unwrap();
    let (mut left, mut adopted) = (0, 0);
    for round in 0..ROUNDS {
        let daemon = Daemon::start(&bench);
        tokio::time::sleep(takes * round / (ROUNDS - 4)).await;
        drop(daemon);

        let driver = bench.driver();
        let processes = bench.processes();
        assert!(processes.len() <= 1, "{processes:?}");
        left += usize::from(!driver.list().unwrap().is_empty());
        if round % 2 == 0 {
            let vm = driver.start(&bench.spec()).await.unwrap();
            assert_eq!(vm.state(), RunState::Running);
            assert_eq!(bench.processes(), [vm.pid()]);
            if let [pid] = processes[..] {
                assert_eq!(vm.pid(), pid);
                adopted += 1;
            }
        }
        driver.remove(&bench.id).await.unwrap();
        bench.assert_clean();
    }
    // Otherwise nothing was cut, and nothing shown.
    assert!(left > 2 && adopted > 0, "left {left}, adopted {adopted}");
}

#[tokio::test]
async fn a_removal_may_be_cut() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    driver.start(&bench.spec()).await.unwrap();
    driver.remove(&bench.id).await.unwrap();
    // What remains if it is cut between renaming the run directory and emptying it.
    let half = bench.config().run_dir.join(format!(".removed-{}", bench.id));
    std::fs::create_dir(&half).unwrap();
    std::fs::write(half.join("lock"), "").unwrap();
    assert!(driver.list().unwrap().is_empty());
    let driver = bench.driver();
    bench.assert_clean();
    drop(driver);
}

#[tokio::test]
async fn a_run_directory_removed_by_hand_leaves_no_machine() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    if driver.controllers().is_empty() {
        eprintln!("skipped: no control groups");
        return;
    }
    let vm = driver.start(&bench.spec()).await.unwrap();
    std::fs::remove_dir_all(bench.config().run_dir.join(&bench.id)).unwrap();
    let other = bench.driver();
    assert_eq!(other.list().unwrap(), [bench.id.as_str()]);
    other.remove(&bench.id).await.unwrap();
    vm.exited().await;
    bench.assert_clean();
}

#[tokio::test]
async fn a_reused_process_id_is_not_believed() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    driver.start(&bench.spec()).await.unwrap().kill().await.unwrap();
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let dir = bench.config().run_dir.join(&bench.id);
    std::fs::write(dir.join("pid"), format!("{}\n", stranger.id())).unwrap();

    // Nobody holds the lock: there is no machine.
    assert!(driver.adopt(&bench.id).await.unwrap().is_none());
    // Somebody does, but not that process.
    let lock = File::open(dir.join("lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(driver.adopt(&bench.id).await, Err(Error::Busy { .. })));
    assert!(matches!(driver.remove(&bench.id).await, Err(Error::Busy { .. })));
    drop(lock);
    driver.remove(&bench.id).await.unwrap();
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn a_dropped_start_is_found_again() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let spec = bench.spec();
    for wait in [0, 1, 5, 20] {
        let cut = tokio::time::timeout(Duration::from_millis(wait), driver.start(&spec)).await;
        assert!(cut.is_err());
        let vm = driver.start(&spec).await.unwrap();
        assert_eq!(bench.processes(), [vm.pid()]);
        driver.remove(&bench.id).await.unwrap();
        bench.assert_clean();
    }
}

#[tokio::test]
async fn a_machine_that_is_being_started_is_removed_after() {
    let Some(bench) = Bench::new() else { return };
    let driver = bench.driver();
    let spec = bench.spec();
    let (started, removed) = tokio::join!(driver.start(&spec), async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        driver.remove(&bench.id).await
    });
    started.unwrap().exited().await;
    removed.unwrap();
    bench.assert_clean();
    // So does a driver that shares nothing but the folder.
    let other: Driver = bench.driver();
    let (started, removed) = tokio::join!(driver.start(&spec), async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        other.remove(&bench.id).await
    });
    removed.unwrap();
    match started {
        Ok(vm) => drop(vm.exited().await),
        Err(error) => assert!(matches!(error, Error::Qemu { .. } | Error::Gone), "{error}"),
    }
    driver.remove(&bench.id).await.unwrap();
    bench.assert_clean();
}
