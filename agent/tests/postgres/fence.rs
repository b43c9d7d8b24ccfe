//! The fence against real servers: it fires at its deadline, outlives its agent and is replaced.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, getsid};
use trunkline_agent::config::{WatchdogConfig, WatchdogMode};
use trunkline_agent::fence::{Deadline, FenceHandle, HEARTBEAT};
use trunkline_agent::postgres::{Postgres, ServerRole};
use trunkline_agent::watchdog::{Readiness, Teller, is_kept, readiness};
use trunkline_shared::cluster::Moment;
use trunkline_shared::service::clock;

use super::servers::{PATIENCE, Servers, on_every_major};
use super::{BUSY, answer, primary, seen_ended, signal, wait_for};

/// Ends the fence of a test even if the test fails.
struct Fenced(FenceHandle);

impl Drop for Fenced {
    fn drop(&mut self) {
        if let Some(pid) = self.0.pid() {
            signal(pid, Signal::KILL);
        }
    }
}

async fn fence(servers: &Servers) -> Fenced {
    let config = servers.config(1);
    let program = servers.agent();
    Fenced(
        FenceHandle::attach_or_start(&config.run_dir, &config.data_dir, &program)
            .await
            .unwrap(),
    )
}

#[test]
fn the_fence_fires_at_its_deadline_and_not_when_it_moved() {
    on_every_major(
        "fence::the_fence_fires_at_its_deadline_and_not_when_it_moved",
        async |servers| {
            let door = primary(servers).await;
            let fence = fence(servers).await;
            let fence = &fence.0;
            // Two deadlines that pass without effect: one moved, one disarmed.
            let passes = async |passed: Moment| {
                wait_for("the time after the deadline", String::new, async || {
                    let is_read = fence.has_read_since(passed + HEARTBEAT);
                    (is_read && clock::now() > passed).then_some(())
                })
                .await;
                assert!(!answer(&door).await.is_in_recovery);
            };
            let moved = clock::now() + Duration::from_secs(2);
            fence.arm(moved).unwrap();
            fence.arm(moved + PATIENCE).unwrap();
            passes(moved).await;
            let disarmed = clock::now() + Duration::from_secs(2);
            fence.arm(disarmed).unwrap();
            fence.disarm().unwrap();
            assert_eq!(fence.deadline(), Some(Deadline::Disarmed));
            passes(disarmed).await;

            for _ in 0..5 {
                let client = servers.client(1).await;
                tokio::spawn(async move { client.batch_execute(BUSY).await });
            }
            let deadline = clock::now() + 3 * HEARTBEAT;
            fence.arm(deadline).unwrap();
            let seen = seen_ended(&door).await;
            assert!(seen >= deadline, "fired {:?} early", seen.until(deadline));
            wait_for("a dead instance", String::new, async || {
                door.is_dead().await.then_some(())
            })
            .await;
            println!(
                "measured: deadline to postmaster's end {:?}, to dead {:?}",
                seen.since(deadline),
                clock::now().since(deadline)
            );
            let log = servers.config(1).run_dir.join("fence.log");
            wait_for(
                "the fence's line of what it killed",
                String::new,
                async || {
                    let text = std::fs::read_to_string(&log).unwrap();
                    text.contains("killed").then_some(())
                },
            )
            .await;

            // The right is not back: what is started now is killed as well.
            door.start(ServerRole::Primary).await.unwrap();
            seen_ended(&door).await;
            let written = clock::now();
            fence.disarm().unwrap();
            wait_for("the fence to read it", String::new, async || {
                fence.has_read_since(written).then_some(())
            })
            .await;
            door.start(ServerRole::Primary).await.unwrap();
            door.wait_ready(PATIENCE).await.unwrap();
        },
    );
}

#[test]
fn the_fence_outlives_its_agent_and_a_frozen_or_dead_one_is_replaced() {
    on_every_major(
        "fence::the_fence_outlives_its_agent_and_a_frozen_or_dead_one_is_replaced",
        async |servers| {
            let mut first = fence(servers).await;
            let pid = first.0.pid().unwrap();
            let session = getsid(Pid::from_raw(pid)).unwrap().as_raw_nonzero().get();
            assert_eq!(session, pid, "a session of its own");
            let arguments = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
            assert_eq!(arguments.trim_end_matches('\0'), "trunkline-fence");
            let second = fence(servers).await;
            assert_eq!(second.0.pid(), Some(pid), "attached, not started again");
            let stranger = FenceHandle::attach_or_start(
                &servers.config(1).run_dir,
                servers.folder(),
                &servers.agent(),
            )
            .await;
            assert!(stranger.is_err(), "it watches another instance");
            assert!(second.0.is_live(clock::now()));

            signal(pid, Signal::STOP);
            wait_for(
                "a frozen fence to count as not live",
                String::new,
                async || (!first.0.is_live(clock::now())).then_some(()),
            )
            .await;
            assert!(first.0.ensure_live().await.unwrap());
            let replaced = first.0.pid().unwrap();
            assert_ne!(replaced, pid);

            signal(replaced, Signal::KILL);
            wait_for(
                "a dead fence to count as not live",
                String::new,
                async || (!first.0.is_live(clock::now())).then_some(()),
            )
            .await;
            let began = clock::now();
            assert!(first.0.ensure_live().await.unwrap());
            println!(
                "measured: dead fence replaced in {:?}",
                clock::now().since(began)
            );
            assert!(!first.0.ensure_live().await.unwrap());

            // A fence whose run directory is gone would kill whatever stands in the same place later.
            let abandoned = first.0.pid().unwrap();
            std::fs::remove_dir_all(&servers.config(1).run_dir).unwrap();
            wait_for("the abandoned fence to end", String::new, async || {
                let arguments = std::fs::read(format!("/proc/{abandoned}/cmdline"));
                arguments.map_or(true, |text| text.is_empty()).then_some(())
            })
            .await;
        },
    );
}

/// The bytes that the watchdog got since the last look.
fn got(pipe: &mut File) -> String {
    let mut bytes = [0; 4096];
    let count = pipe.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

fn make_pipe(path: &Path) {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
}

async fn fires_in_silence(fence: &Fenced, door: &Postgres, pipe: &mut File) {
    // It counts 4 s, so with 4 s left it is told to count half of that, and at last a second, which the lease's reserve
    // is for.
    let deadline = clock::now() + Duration::from_secs(4);
    fence.0.arm(deadline).unwrap();
    let armed = clock::now();
    wait_for("the fence to read it", String::new, async || {
        fence.0.has_read_since(armed).then_some(())
    })
    .await;
    let mut late = String::new();
    wait_for("the end of its time", String::new, async || {
        late.push_str(&got(pipe));
        (clock::now() >= deadline.before(Duration::from_millis(100))).then_some(())
    })
    .await;
    assert!(late.contains("t2 ") && !late.contains('V'), "{late}");
    let (_, at_last) = late.split_once("t1 ").unwrap();
    assert!(at_last.chars().all(|byte| byte == '1'), "{late}");
    // It fires, and with nothing left to guard the device stops.
    wait_for("a dead instance", String::new, async || {
        door.is_dead().await.then_some(())
    })
    .await;
    let mut last = String::new();
    wait_for("the magic close", String::new, async || {
        last.push_str(&got(pipe));
        last.ends_with('V').then_some(())
    })
    .await;
    assert_eq!(last.trim_start_matches('1'), "V");
}

#[test]
fn the_watchdog_is_pinged_only_in_time_stopped_when_harmless_and_kept_over_a_killed_fence() {
    on_every_major(
        "fence::the_watchdog_is_pinged_only_in_time_stopped_when_harmless_and_kept_over_a_killed_fence",
        async |servers| {
            let door = primary(servers).await;
            let device = servers.folder().join("watchdog");
            make_pipe(&device);
            let config = WatchdogConfig {
                mode: WatchdogMode::Required,
                device: device.clone(),
                safety_margin: Some(Duration::from_secs(2)),
            };
            let mut fence = fence(servers).await;
            let run_dir = servers.config(1).run_dir;
            let teller = Teller::new(config.clone(), &run_dir);
            // The reader of the pipe is the device: without it nothing can be opened.
            let ttl = Duration::from_secs(10);
            teller.tell(ttl, ttl).unwrap();
            fence.0.arm(clock::now() + PATIENCE).unwrap();
            assert!(teller.wait_open(PATIENCE).await.is_err());
            assert!(matches!(readiness(&config, &run_dir), Readiness::Failed(_)));
            let mut pipe = OpenOptions::new()
                .read(true)
                .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
                .open(&device)
                .unwrap();
            let mut pings = String::new();
            wait_for("pings", String::new, async || {
                pings.push_str(&got(&mut pipe));
                (pings.matches('1').count() > 3).then_some(())
            })
            .await;
            assert!(!pings.contains('V'));
            assert_eq!(readiness(&config, &run_dir), Readiness::Ready);
            assert!(is_kept(&config, &run_dir));

            // A fence that is killed stops nothing, and the next one goes on.
            let first = fence.0.pid().unwrap();
            signal(first, Signal::KILL);
            wait_for("its end", String::new, async || {
                (fence.0.pid() != Some(first)).then_some(())
            })
            .await;
            assert!(!got(&mut pipe).contains('V'));
            assert!(fence.0.ensure_live().await.unwrap());
            wait_for("pings of the next one", String::new, async || {
                got(&mut pipe).contains('1').then_some(())
            })
            .await;

            fires_in_silence(&fence, &door, &mut pipe).await;
            // It could be opened, and nothing becomes writable before it is.
            wait_for("the word of it", String::new, async || {
                (!is_kept(&config, &run_dir)).then_some(())
            })
            .await;
            assert_eq!(readiness(&config, &run_dir), Readiness::Ready);

            // Armed again it counts again, and a disarmed fence stops it at once.
            fence.0.arm(clock::now() + PATIENCE).unwrap();
            wait_for("pings again", String::new, async || {
                got(&mut pipe).contains('1').then_some(())
            })
            .await;
            fence.0.disarm().unwrap();
            assert!(fence.0.watchdog_closed(PATIENCE).await);
            assert!(got(&mut pipe).ends_with('V'));
        },
    );
}
