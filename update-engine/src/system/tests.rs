//! The engine against a logind and a systemd made up for it, on a bus of its own.

mod alerts;
mod logind;
mod systemd;

use super::bus::Bus;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Long enough for a busy machine; nothing waits for it where all is well.
const LONG: Duration = Duration::from_secs(60);

/// A bus that ends with the test.
struct PrivateBus {
    daemon: Child,
    address: String,
}

impl PrivateBus {
    fn start() -> Self {
        let mut daemon = Command::new("dbus-daemon")
            .args(["--session", "--print-address", "--nofork", "--nopidfile"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon: apt-get install dbus");
        let mut address = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { daemon, address: address.trim().to_owned() }
    }

    fn bus(&self, timeout: Duration) -> Bus {
        Bus::at(self.address.clone(), timeout)
    }

    fn serve(&self) -> zbus::connection::Builder<'static> {
        let address: zbus::Address = self.address.parse().unwrap();
        zbus::connection::Builder::address(address).unwrap()
    }
}

impl Drop for PrivateBus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// No bus at all.
fn nowhere() -> Bus {
    Bus::at("unix:path=/no/such/bus".to_owned(), LONG)
}
