//! Three machines under one reboot lock: an update goes through them one by one; a bad release stops at the first, which
//! falls back, and the others never reboot.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails, its own functions included")]

use protocol::lock::{Document, Phase};
use protocol::status::StateName;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tests::vm::guest::Flaw;
use tests::vm::machine::Machine;
use tests::vm::site::{BOOT, Settings, Site};

/// The longest that three machines take one after the other, each asking again when the lock told it to.
const ROLL: Duration = Duration::from_secs(600);
/// The longest that the first of them takes for a release that it comes back from.
const BACK: Duration = Duration::from_secs(420);

fn lock(site: &Site) -> Document {
    let said = site.world.updatectl(&["lock", "list", "default", "--json"]).unwrap().ok().unwrap();
    let value = said.json().unwrap();
    serde_json::from_value(value["locks"][0]["document"].clone()).unwrap()
}

/// Looks at the lock all the time while something is done: never do two hold a permit.
fn watched<T>(site: &Site, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                let document = lock(site);
                assert!(document.holders.len() <= 1, "{:?}", document.holders);
                looks += 1;
                std::thread::park_timeout(Duration::from_millis(200));
            }
            looks
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        let looks = watcher.join().unwrap();
        assert!(looks > 10, "the lock was looked at {looks} times");
        result
    })
}

/// A Prometheus in which an alert fires as long as the flag says so.
fn prometheus(fires: &Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, fires) = (listener.local_addr().unwrap().port(), Arc::clone(fires));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let sample = r#"{"metric":{"alertname":"DiskFull"},"value":[0,"1"]}"#;
            let result = if fires.load(Ordering::Relaxed) { sample } else { "" };
            let body =
                format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{result}]}}}}"#);
            let head =
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length:";
            let _ = write!(stream, "{head} {}\r\n\r\n{body}", body.len());
        }
    });
    port
}

fn boot_id(machine: &mut Machine) -> String {
    machine.run("cat /proc/sys/kernel/random/boot_id").unwrap().ok().unwrap()
}

#[test]
fn one_by_one_and_a_bad_release_stops_at_the_first() {
    let fires = Arc::new(AtomicBool::new(true));
    let config = format!("[reboot.alerts]\nurl = \"http://10.0.2.2:{}\"\n", prometheus(&fires));
    let settings = Settings { strategy: "lock", config, ..Settings::default() };
    let Some(site) = Site::new("lock", settings).unwrap() else { return };
    let mut machines = site.machines(3).unwrap();
    machines.iter_mut().for_each(|machine| machine.start().unwrap());
    for machine in &mut machines {
        machine.wait_confirmed("1.0.0", BOOT).unwrap();
    }
    site.report("1.0.0 runs on three");

    watched(&site, || {
        site.publish("1.1.0", Flaw::None).unwrap();
        let alerted = machines[0].wait_status(ROLL, |status| status.reason.starts_with("alert: ")).unwrap();
        assert!(alerted.reason.contains("DiskFull"), "{}", alerted.reason);
        assert_eq!(alerted.booted.unwrap().version.as_str(), "1.0.0");
        fires.store(false, Ordering::Relaxed);
        for machine in &mut machines {
            machine.run("updatectl check --no-wait").unwrap();
        }
        site.report("the alert is over");
        for machine in &mut machines {
            machine.wait_confirmed("1.1.0", ROLL).unwrap();
            site.report("1.1.0 is confirmed on one more");
        }
    });
    for machine in &mut machines {
        machine.wait_status(BOOT, |status| status.permit.is_none()).unwrap();
    }
    let document = lock(&site);
    assert!(document.holders.is_empty(), "{document:?}");

    let boots: Vec<String> = machines.iter_mut().map(boot_id).collect();
    watched(&site, || {
        site.publish("1.2.0", Flaw::Health).unwrap();
        let limit = std::time::Instant::now() + BACK;
        while !lock(&site).holders.iter().any(|holder| holder.phase == Phase::Failed) {
            assert!(std::time::Instant::now() < limit, "{:?}", lock(&site));
            machines[0].run("sleep 1").ok();
        }
    });
    site.report("1.2.0 failed on one");
    let halted = |machine: &mut Machine| {
        machine.wait_status(BACK, |status| {
            status.state == StateName::Waiting && status.reason.contains("permit: halted: node ")
        })
    };
    let holder = lock(&site).holders.remove(0);
    assert!(holder.reason.contains("was not confirmed"), "{holder:?}");
    let mut reboots = 0;
    for (machine, before) in machines.iter_mut().zip(&boots) {
        // Whichever it was, it is back.
        let status = machine.wait_status(BACK, |status| {
            status
                .booted
                .as_ref()
                .is_some_and(|booted| booted.confirmed && booted.version.as_str() == "1.1.0")
        });
        let status = status.unwrap();
        if boot_id(machine) == *before {
            halted(machine).unwrap();
        } else {
            reboots += 1;
            assert_eq!(status.quarantine.len(), 1);
            let permit = machine.wait_status(BOOT, |status| status.permit.is_some()).unwrap().permit.unwrap();
            assert!(permit.contains("1.2.0 failed here"), "{permit}");
        }
    }
    assert_eq!(reboots, 1);
    // Three polls and more of the lock later nobody else has moved.
    machines[0].run("sleep 40").unwrap().ok().unwrap();
    let now: Vec<String> = machines.iter_mut().map(boot_id).collect();
    assert_eq!(now.iter().zip(&boots).filter(|(now, before)| now == before).count(), 2);
    assert_eq!(lock(&site).holders.len(), 1);
    site.report("the others never rebooted");
}
