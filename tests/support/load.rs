//! Clients that notice everything: each request has one right answer, and whatever else comes of it is a failure, with the
//! time and what was going on.
//!
//! The protocol is that of `PROBE count`. A client asks, reads its whole answer, and only then asks again.

use super::DEADLINE;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A random generator that prints its seed and is the same for it: xorshift64*.
pub struct Random(u64);

impl Random {
    /// Of the variable TENTPOLE_SEED, else another one each time.
    pub fn new(what: &str) -> Random {
        let given = std::env::var("TENTPOLE_SEED").ok();
        let seed = given.map_or_else(
            || {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.expect("is past 1970").as_nanos() as u64 | 1
            },
            |text| text.parse().expect("TENTPOLE_SEED is a number"),
        );
        eprintln!("{what}: TENTPOLE_SEED={seed}");
        Random(seed)
    }

    pub fn of(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    pub fn micros(&mut self, most: u64) -> Duration {
        Duration::from_micros(self.below(most))
    }
}

/// What clients have got, or what one worker says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub connections: u64,
    pub requests: u64,
    pub sent: u64,
    pub received: u64,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.connections += other.connections;
        self.requests += other.requests;
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// What became of all clients.
#[derive(Debug)]
pub struct Report {
    pub tally: Tally,
    /// The longest that one request took, and what was going on.
    pub longest: (Duration, String),
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Tally>>,
}

struct Shared {
    begun: Instant,
    ending: AtomicBool,
    now: Mutex<String>,
    failures: Mutex<Vec<String>>,
    longest: Mutex<(Duration, String)>,
}

impl Load {
    /// To each address (`HOST:PORT`, or a path) so many clients that connect for each request, and one that does not.
    pub fn start(addresses: &[&str], connecting: u64) -> Load {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            ending: AtomicBool::new(false),
            now: Mutex::new("nothing".into()),
            failures: Mutex::default(),
            longest: Mutex::default(),
        });
        let mut threads = Vec::new();
        for address in addresses {
            for number in 0..=connecting {
                let (shared, address) = (Arc::clone(&shared), (*address).to_owned());
                threads.push(std::thread::spawn(move || {
                    let client = Client {
                        shared: &shared,
                        address,
                        keeps: number == 0,
                        random: Random::of(number + 1),
                        tally: Tally::default(),
                    };
                    client.run()
                }));
            }
        }
        Load { shared, threads }
    }

    /// Says what is going on from now on; and that nothing has failed so far.
    pub fn now(&self, what: impl Into<String>) {
        *self.shared.now.lock().expect("no panic") = what.into();
        self.check();
    }

    fn check(&self) {
        let failures = self.shared.failures.lock().expect("no panic");
        let mut text = String::new();
        for failure in failures.iter().take(20) {
            let _ = writeln!(text, "{failure}");
        }
        assert!(failures.is_empty(), "{} failures:\n{text}", failures.len());
    }

    /// Lets all clients finish the request that they are at. Nothing must have failed.
    pub fn finish(self) -> Report {
        self.shared.ending.store(true, Ordering::SeqCst);
        let mut tally = Tally::default();
        for thread in self.threads {
            tally.add(thread.join().expect("a client does not panic"));
        }
        let load = Load {
            shared: self.shared,
            threads: Vec::new(),
        };
        load.check();
        let longest = load.shared.longest.lock().expect("no panic").clone();
        Report { tally, longest }
    }
}

struct Client<'a> {
    shared: &'a Shared,
    address: String,
    keeps: bool,
    random: Random,
    tally: Tally,
}

impl Client<'_> {
    fn run(mut self) -> Tally {
        let mut kept = None;
        while !self.shared.ending.load(Ordering::SeqCst) {
            let begun = Instant::now();
            let during = self.shared.now.lock().expect("no panic").clone();
            let asked = self.request(&mut kept);
            let took = begun.elapsed();
            let now = self.shared.now.lock().expect("no panic").clone();
            if let Err((step, error)) = asked {
                let at = begun.duration_since(self.shared.begun);
                let kind = if self.keeps {
                    "a kept connection"
                } else {
                    "a new connection"
                };
                self.shared.failures.lock().expect("no panic").push(format!(
                    "{at:.3?}, in {during} to {now}: {step} on {kind} to {} failed after {took:.1?}: {error}",
                    self.address
                ));
                kept = None;
                // One dead address is told of once, and not ten thousand times.
                std::thread::sleep(Duration::from_millis(50));
            }
            let mut longest = self.shared.longest.lock().expect("no panic");
            if took > longest.0 {
                *longest = (took, format!("{during} to {now}"));
            }
            drop(longest);
            // Not to find out how fast the machine is, but what is lost.
            std::thread::sleep(self.random.micros(6000));
        }
        self.tally
    }

    fn request(
        &mut self,
        kept: &mut Option<BufReader<Stream>>,
    ) -> Result<(), (&'static str, io::Error)> {
        let length = match self.random.below(40) {
            0 => 200_000,
            1..=4 => self.random.below(20_000),
            _ => self.random.below(300),
        } as usize;
        let mut bytes: Vec<u8> = (0..length).map(|_| self.random.next() as u8).collect();
        let mut stream = match kept.take() {
            Some(stream) => stream,
            None => {
                let stream =
                    Stream::connect(&self.address).map_err(|error| ("connecting", error))?;
                self.tally.connections += 1;
                BufReader::new(stream)
            }
        };
        let mut request = format!("{length}\n").into_bytes();
        request.extend(&bytes);
        // In two parts now and then: a worker that ends must wait for the second one.
        let cut = if self.random.below(10) == 0 {
            request.len() / 2
        } else {
            0
        };
        for part in [&request[..cut], &request[cut..]] {
            stream
                .get_mut()
                .write_all(part)
                .map_err(|error| ("asking", error))?;
        }
        self.tally.sent += request.len() as u64;
        let reading = |error| ("reading the answer", error);
        let mut line = String::new();
        stream.read_line(&mut line).map_err(reading)?;
        let wrong = |what: String| ("the answer", io::Error::other(what));
        let mut words = line.split_whitespace();
        if words.next() != Some(&length.to_string()) {
            return Err(wrong(format!(
                "is {line:?} for a request of {length} bytes"
            )));
        }
        let is_last = match words.nth(1) {
            Some("last") => true,
            Some("more") => false,
            _ => return Err(wrong(format!("is {line:?}"))),
        };
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).map_err(reading)?;
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        if answer != bytes {
            return Err(wrong("has other bytes than it should".into()));
        }
        self.tally.received += (line.len() + length) as u64;
        self.tally.requests += 1;
        if is_last {
            let rest = super::uninterrupted(|| stream.read(&mut [0]))
                .map_err(|error| ("waiting for the end", error))?;
            if rest != 0 {
                return Err(wrong("goes on after its end".into()));
            }
        } else if self.keeps {
            *kept = Some(stream);
        }
        Ok(())
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn connect(address: &str) -> io::Result<Stream> {
        if Path::new(address).is_absolute() {
            let stream = UnixStream::connect(address)?;
            stream.set_read_timeout(Some(DEADLINE))?;
            return Ok(Stream::Unix(stream));
        }
        let address = address.parse().map_err(io::Error::other)?;
        let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_nodelay(true)?;
        Ok(Stream::Tcp(stream))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
