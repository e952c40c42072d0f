//! The control socket, spoken to by hand: Varlink messages, who may send them, and in which order they are answered.

mod support;

use serde_json::{Value, json};
use std::io::{BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use support::{Manager, bounded, is_alive, needs_program, needs_root, poll, receive, send};

const MANAGER: &str = "io.tentpole.Manager";
const SERVICE: &str = "org.varlink.service";

/// A connection that sends and receives.
struct Client {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    fn new(manager: &Manager) -> Client {
        let stream = manager.connect();
        let reader = BufReader::new(stream.try_clone().expect("clone"));
        Client { stream, reader }
    }

    fn send(&mut self, method: &str, parameters: Value) {
        send(
            &mut self.stream,
            &json!({"method": format!("{MANAGER}.{method}"), "parameters": parameters}),
        );
    }

    fn receive(&mut self) -> Value {
        receive(&mut self.reader).expect("an answer, not the end")
    }

    fn ask(&mut self, message: &Value) -> Value {
        send(&mut self.stream, message);
        self.receive()
    }
}

fn error(reply: &Value) -> &str {
    reply["error"].as_str().unwrap_or("none")
}

const WEB: &str = "[watcher.web]\ncmd = 'PROBE sleep'\nnumprocesses = 2\n";

/// Never ready: a start of it takes for ever.
const SLOW: &str = r#"
    [watcher.slow]
    cmd = "PROBE sleep"
    type = "notify"
    autostart = false
    [watcher.web]
    cmd = "PROBE sleep"
"#;

/// What any Varlink client expects of any service.
mod varlink {
    use super::*;

    #[test]
    fn info_names_the_interfaces_and_each_can_be_described() {
        let manager = Manager::start(WEB);
        let mut client = Client::new(&manager);
        let info = client.ask(&json!({"method": format!("{SERVICE}.GetInfo")}));
        let parameters = &info["parameters"];
        for field in ["vendor", "product", "version", "url"] {
            assert!(parameters[field].is_string(), "{info}");
        }
        assert_eq!(parameters["interfaces"], json!([SERVICE, MANAGER]));
        for interface in [SERVICE, MANAGER] {
            let reply = client.ask(&json!({
                "method": format!("{SERVICE}.GetInterfaceDescription"),
                "parameters": {"interface": interface},
            }));
            let text = reply["parameters"]["description"].as_str().expect("a text");
            assert!(text.contains(&format!("interface {interface}")), "{text}");
        }
        let reply = client.ask(&json!({
            "method": format!("{SERVICE}.GetInterfaceDescription"),
            "parameters": {"interface": "org.example.none"},
        }));
        assert_eq!(error(&reply), "org.varlink.service.InterfaceNotFound");
    }

    #[test]
    fn every_described_method_is_answered() {
        let manager = Manager::start(WEB);
        let mut client = Client::new(&manager);
        for (method, parameters) in [
            ("Status", json!({})),
            ("Status", json!({"names": ["web"]})),
            ("Start", json!({"names": ["web"]})),
            ("Stop", json!({"names": ["web"], "wait": false})),
            ("Stop", json!({"all": true, "names": null})),
            ("Start", json!({"all": true})),
            ("Restart", json!({"names": ["web"]})),
            ("Scale", json!({"name": "web", "numprocesses": 3})),
            ("Scale", json!({"name": "web", "by": -1})),
            ("Signal", json!({"name": "web", "signal": "CONT"})),
            (
                "Signal",
                json!({"name": "web", "signal": "18", "wid": 1, "children": true}),
            ),
        ] {
            client.send(method, parameters.clone());
            let reply = client.receive();
            assert_eq!(
                reply["error"],
                Value::Null,
                "{method} {parameters}: {reply}"
            );
            assert!(reply["parameters"].is_object(), "{method}: {reply}");
            assert_ne!(reply["continues"], true, "{method}: {reply}");
        }
    }

    #[test]
    fn what_there_is_not_is_an_error_with_its_name_and_the_connection_goes_on() {
        let manager = Manager::start(&format!(
            "[socket.http]\nlisten = \"127.0.0.1:0\"\n{WEB}sockets = [\"http\"]\n"
        ));
        let mut client = Client::new(&manager);
        let cases = [
            (
                "io.tentpole.Manager.Nonsense",
                json!({}),
                "org.varlink.service.MethodNotFound",
                json!({"method": "io.tentpole.Manager.Nonsense"}),
            ),
            (
                "io.tentpole.Manager.Pause",
                json!({"names": ["web"]}),
                "org.varlink.service.MethodNotImplemented",
                json!({"method": "io.tentpole.Manager.Pause"}),
            ),
            (
                "org.example.Thing.Do",
                json!({}),
                "org.varlink.service.InterfaceNotFound",
                json!({"interface": "org.example.Thing"}),
            ),
            (
                "io.tentpole.Manager.Stop",
                json!({"nmaes": ["web"], "all": true}),
                "org.varlink.service.InvalidParameter",
                json!({"parameter": "nmaes"}),
            ),
            (
                "io.tentpole.Manager.Stop",
                json!({}),
                "org.varlink.service.InvalidParameter",
                json!({"parameter": "names"}),
            ),
            (
                "io.tentpole.Manager.Stop",
                json!({"names": "web"}),
                "org.varlink.service.InvalidParameter",
                json!({"parameter": "names"}),
            ),
            (
                "io.tentpole.Manager.Scale",
                json!({"name": "web"}),
                "org.varlink.service.InvalidParameter",
                json!({"parameter": "numprocesses"}),
            ),
            (
                "io.tentpole.Manager.Scale",
                json!({"name": "web", "numprocesses": -1}),
                "org.varlink.service.InvalidParameter",
                json!({"parameter": "numprocesses"}),
            ),
            (
                "io.tentpole.Manager.Signal",
                json!({"name": "web", "signal": "HUP", "wid": 0}),
                "org.varlink.service.InvalidParameter",
                json!({"parameter": "wid"}),
            ),
        ];
        for (method, parameters, name, details) in cases {
            let reply = client.ask(&json!({"method": method, "parameters": parameters}));
            assert_eq!(error(&reply), name, "{reply}");
            assert_eq!(reply["parameters"], details, "{reply}");
        }
        let reply = client.ask(&json!({"method": "io.tentpole.Manager.Signal", "parameters": {"name": "web", "signal": "NONSENSE"}}));
        assert_ne!(reply["error"], Value::Null, "{reply}");
        let reply = client.ask(
            &json!({"method": "io.tentpole.Manager.Stop", "parameters": {"names": ["web", "wev"]}}),
        );
        assert_eq!(error(&reply), "io.tentpole.Manager.NoSuchUnit");
        assert_eq!(reply["parameters"]["name"], "wev");
        assert_eq!(reply["parameters"]["nearest"], "web");
        let reply = client.ask(
            &json!({"method": "io.tentpole.Manager.Stop", "parameters": {"names": ["web", "http"]}}),
        );
        assert_eq!(error(&reply), "io.tentpole.Manager.NoSuchUnit");
        assert_eq!(
            reply["parameters"]["message"],
            "`http` is a socket, and this command takes watchers; its watcher is `web`"
        );
        assert_eq!(reply["parameters"]["socket_of"], json!(["web"]));
        let output = manager.cli(&["start", "http"]);
        assert_eq!(output.status.code(), Some(4));
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "tentpole: `http` is a socket, and this command takes watchers; its watcher is `web`\n"
        );
        // One unknown name, and nothing is done.
        assert_eq!(manager.watcher("web")["state"], "running");
        assert_eq!(manager.pids("web").len(), 2);
    }

    #[test]
    fn with_more_it_says_how_far_it_is() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do await DIR/go-$(circus.wid) , notify READY=1 , sleep"
            type = "notify"
            numprocesses = 2
            autostart = false
            "#,
        );
        let mut client = Client::new(&manager);
        send(
            &mut client.stream,
            &json!({"method": format!("{MANAGER}.Start"), "parameters": {"names": ["web"]}, "more": true}),
        );
        let mut seen = Vec::new();
        loop {
            let reply = client.receive();
            assert_eq!(reply["error"], Value::Null, "{reply}");
            let progress = &reply["parameters"]["progress"];
            if reply["continues"] != true {
                assert_eq!(*progress, Value::Null, "{reply}");
                break;
            }
            assert_eq!(progress["unit"], "web", "{reply}");
            assert_eq!(progress["wanted"], 2, "{reply}");
            assert!(progress["text"].is_string(), "{reply}");
            let done = progress["done"].as_u64().expect("a number");
            seen.push(done);
            if seen.len() == 1 {
                manager.touch("go-1");
            }
            if done == 1 {
                manager.touch("go-2");
            }
        }
        assert!(seen.contains(&1), "{seen:?}");
        assert!(seen.is_sorted(), "{seen:?}");
        assert_eq!(manager.watcher("web")["state"], "running");
    }

    #[test]
    fn oneway_is_done_and_not_answered() {
        let manager = Manager::start(WEB);
        let mut client = Client::new(&manager);
        for (method, parameters) in [
            ("Scale", json!({"name": "web", "numprocesses": 4})),
            ("Nonsense", json!({})),
            ("Stop", json!({"names": ["nobody"]})),
            ("Status", json!({})),
        ] {
            send(
                &mut client.stream,
                &json!({"method": format!("{MANAGER}.{method}"), "parameters": parameters, "oneway": true}),
            );
        }
        // The first answer is the one to the first question.
        client.send("Signal", json!({"name": "web", "signal": "CONT"}));
        let reply = client.receive();
        assert_eq!(
            reply["parameters"]["message"], "sent to 4 workers",
            "{reply}"
        );
    }

    #[test]
    fn pipelined_calls_are_answered_in_their_order() {
        let manager = Manager::start(WEB);
        let mut client = Client::new(&manager);
        let mut bytes = Vec::new();
        let counts = [1, 5, 2, 4, 0, 3];
        for count in counts {
            let scale = json!({"method": format!("{MANAGER}.Scale"), "parameters": {"name": "web", "numprocesses": count}});
            let status =
                json!({"method": format!("{MANAGER}.Status"), "parameters": {"names": ["web"]}});
            for message in [scale, status] {
                bytes.extend(message.to_string().into_bytes());
                bytes.push(0);
            }
        }
        client.stream.write_all(&bytes).expect("send");
        for count in counts {
            let reply = client.receive();
            assert_eq!(reply["error"], Value::Null, "{reply}");
            let status = client.receive();
            let watcher = &status["parameters"]["watchers"][0];
            // Each is done before the next is begun.
            assert_eq!(watcher["wanted"], count, "{watcher}");
            assert_eq!(watcher["ready"], count, "{watcher}");
            assert_eq!(watcher["workers"].as_array().map(Vec::len), Some(count));
        }
    }

    #[test]
    fn what_is_answered_at_once_does_not_hold_up_what_is_behind_it() {
        let manager = Manager::start(WEB);
        let mut client = Client::new(&manager);
        let info = json!({"method": format!("{SERVICE}.GetInfo")});
        let unknown = json!({"method": format!("{MANAGER}.Dance")});
        let stop = json!({"method": format!("{MANAGER}.Stop"), "parameters": {"names": ["web"]}});
        let mut bytes = Vec::new();
        for message in [&info, &info, &unknown, &stop, &unknown, &info] {
            bytes.extend(message.to_string().into_bytes());
            bytes.push(0);
        }
        client.stream.write_all(&bytes).expect("send");
        let mut replies = (0..6).map(|_| client.receive()).collect::<Vec<_>>();
        replies.iter_mut().for_each(|reply| {
            reply["parameters"] = reply["parameters"]["product"].take();
        });
        let errors: Vec<&str> = replies.iter().map(error).collect();
        let not_found = "org.varlink.service.MethodNotFound";
        assert_eq!(
            errors,
            ["none", "none", not_found, "none", not_found, "none"]
        );
        let products = [0, 1, 5].map(|index: usize| replies[index]["parameters"].is_string());
        assert_eq!(products, [true; 3], "{replies:?}");
        assert_eq!(manager.watcher("web")["state"], "stopped");
    }

    #[test]
    fn a_call_may_come_in_pieces() {
        let manager = Manager::start(WEB);
        let mut client = Client::new(&manager);
        let mut bytes = json!({"method": format!("{MANAGER}.Status")})
            .to_string()
            .into_bytes();
        bytes.push(0);
        for piece in bytes.chunks(7) {
            client.stream.write_all(piece).expect("send");
            // Meanwhile others are served.
            assert_eq!(manager.watcher("web")["state"], "running");
        }
        let reply = client.receive();
        assert_eq!(reply["parameters"]["watchers"][0]["name"], "web");
    }

    #[test]
    fn what_is_no_call_ends_the_connection_and_nothing_else() {
        let manager = Manager::start(WEB);
        let mut half = Client::new(&manager);
        half.stream
            .write_all(b"{\"method\": \"io.ten")
            .expect("send");
        for garbage in [
            &b"GET / HTTP/1.1\r\n\r\n\0"[..],
            b"\0",
            b"[]\0",
            b"{}\0",
            b"{\"method\": 5}\0",
            b"\xff\xfe\xfd\0",
            b"{\"method\": \"io.tentpole.Manager.Status\", \"parameters\": []}\0",
        ] {
            let mut client = Client::new(&manager);
            client.stream.write_all(garbage).expect("send");
            let reply = client.receive();
            assert_ne!(reply["error"], Value::Null, "{garbage:?}: {reply}");
        }
        assert_eq!(manager.watcher("web")["state"], "running");
        let rest = b"tpole.Manager.Status\"}\0";
        half.stream.write_all(rest).expect("send");
        assert_eq!(half.receive()["parameters"]["watchers"][0]["name"], "web");
    }

    #[test]
    fn a_message_without_end_is_cut_off() {
        let manager = Manager::start(WEB);
        let mut client = Client::new(&manager);
        let block = vec![b'a'; 1 << 20];
        // The manager stops to listen long before that.
        let refused = (0..64).any(|_| client.stream.write_all(&block).is_err());
        assert!(refused);
        assert_eq!(manager.watcher("web")["state"], "running");
    }

    #[test]
    fn a_client_that_reads_nothing_costs_nobody_else() {
        let manager = Manager::start(WEB);
        let mut deaf = manager.connect();
        deaf.set_nonblocking(true).expect("set");
        let mut message = json!({"method": format!("{MANAGER}.Status")})
            .to_string()
            .into_bytes();
        message.push(0);
        // Until nothing more goes in: the manager waits until it can answer.
        let mut full = 0;
        poll(|| {
            match deaf.write(&message) {
                Ok(_) => full = 0,
                Err(_) => full += 1,
            }
            (full > 20).then_some(())
        })
        .expect("a full buffer");
        for _ in 0..20 {
            assert_eq!(manager.watcher("web")["state"], "running");
        }
    }
}

/// A slow command and the others.
mod together {
    use super::*;

    #[test]
    fn a_slow_start_holds_up_nobody() {
        let manager = Manager::start(SLOW);
        let mut slow = Client::new(&manager);
        slow.send("Start", json!({"names": ["slow"]}));
        manager.wait_for_state("slow", "starting");
        manager.ok(&["status"]);
        manager.ok(&["scale", "web", "3"]);
        assert_eq!(manager.pids("web").len(), 3);
        manager.ok(&["restart", "web"]);
        manager.ok(&["stop", "slow"]);
        assert_eq!(manager.watcher("slow")["state"], "stopped");
        let reply = slow.receive();
        assert_eq!(error(&reply), "io.tentpole.Manager.Superseded", "{reply}");
        assert_eq!(reply["parameters"]["by"], "stop", "{reply}");
    }

    #[test]
    fn a_start_supersedes_a_stop_that_is_not_done() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do once DIR/first { block 15 , notify READY=1 , until 15 , append DIR/got TERM , await DIR/finish , exit 0 } , notify READY=1 , sleep"
            type = "notify"
            "#,
        );
        let mut stopping = Client::new(&manager);
        stopping.send("Stop", json!({"names": ["web"]}));
        manager.wait_for_lines("got", 1);
        let mut starting = Client::new(&manager);
        starting.send("Start", json!({"names": ["web"]}));
        let reply = stopping.receive();
        assert_eq!(error(&reply), "io.tentpole.Manager.Superseded", "{reply}");
        assert_eq!(reply["parameters"]["by"], "start", "{reply}");
        manager.touch("finish");
        let reply = starting.receive();
        assert_eq!(reply["error"], Value::Null, "{reply}");
        assert_eq!(manager.watcher("web")["state"], "running");
    }

    #[test]
    fn the_same_start_twice_is_answered_twice() {
        let manager = Manager::start(
            r#"
            [watcher.web]
            cmd = "PROBE do append DIR/starts x , await DIR/go , notify READY=1 , sleep"
            type = "notify"
            autostart = false
            "#,
        );
        let mut first = Client::new(&manager);
        let mut second = Client::new(&manager);
        first.send("Start", json!({"names": ["web"]}));
        second.send("Start", json!({"names": ["web", "web"]}));
        manager.wait_for_lines("starts", 1);
        manager.touch("go");
        assert_eq!(first.receive()["error"], Value::Null);
        assert_eq!(second.receive()["error"], Value::Null);
        assert_eq!(manager.lines("starts").len(), 1);
    }

    #[test]
    fn a_client_that_goes_away_leaves_its_order_behind() {
        let manager = Manager::start(SLOW);
        for _ in 0..50 {
            let mut client = Client::new(&manager);
            client.send("Start", json!({"names": ["slow"]}));
        }
        manager.wait_for_state("slow", "starting");
        let fds = || {
            let fds = std::fs::read_dir(format!("/proc/{}/fd", manager.pid()));
            fds.expect("list descriptors").count()
        };
        // Nothing is kept of them.
        let mut last = 0;
        poll(|| {
            last = fds();
            (last < 25).then_some(())
        })
        .unwrap_or_else(|| panic!("{last} descriptors"));
        assert_eq!(manager.watcher("slow")["state"], "starting");
        assert_eq!(manager.pids("web").len(), 1);
    }

    #[test]
    fn commands_that_wait_keep_nobody_out() {
        let manager = Manager::start(SLOW);
        let mut clients: Vec<Client> = Vec::new();
        for _ in 0..600 {
            let mut client = Client::new(&manager);
            client.send("Start", json!({"names": ["slow"]}));
            clients.push(client);
        }
        manager.wait_for_state("slow", "starting");
        manager.ok(&["signal", "web", "CONT"]);
        let mut late = Client::new(&manager);
        late.send("Start", json!({"names": ["slow"]}));
        let reply = late.receive();
        assert_eq!(error(&reply), "io.tentpole.Manager.Refused", "{reply}");
        let reason = reply["parameters"]["message"].as_str().expect("a text");
        assert!(reason.contains("384 commands of user "), "{reason}");
        assert!(reason.contains("`--no-wait`"), "{reason}");
        // Who does not wait can give any order, and so all others are answered.
        manager.ok(&["stop", "slow", "--no-wait"]);
        let mut replies: Vec<String> = clients
            .iter_mut()
            .map(|client| match receive(&mut client.reader) {
                Some(reply) => error(&reply).to_owned(),
                None => "closed".to_owned(),
            })
            .collect();
        replies.sort();
        replies.dedup_by(|a, b| a == b);
        assert_eq!(
            replies,
            [
                "io.tentpole.Manager.Refused",
                "io.tentpole.Manager.Superseded"
            ]
        );
        manager.ok(&["start", "web"]);
    }

    #[test]
    fn many_clients_at_once_are_all_answered() {
        let manager = Manager::start(WEB);
        let mut clients: Vec<Client> = (0..100).map(|_| Client::new(&manager)).collect();
        for client in &mut clients {
            client.send("Status", json!({}));
        }
        for client in clients.iter_mut().rev() {
            assert_eq!(client.receive()["parameters"]["watchers"][0]["name"], "web");
        }
    }

    #[test]
    fn half_closed_connections_get_their_answers() {
        let manager = Manager::start(WEB);
        let mut client = Client::new(&manager);
        client.send("Restart", json!({"names": ["web"]}));
        client.send("Status", json!({}));
        client
            .stream
            .shutdown(std::net::Shutdown::Write)
            .expect("shut down");
        assert_eq!(client.receive()["error"], Value::Null);
        assert_eq!(client.receive()["parameters"]["watchers"][0]["ready"], 2);
        let mut rest = Vec::new();
        client.reader.read_to_end(&mut rest).expect("the end");
        assert!(rest.is_empty());
    }
}

/// Who may give orders.
mod permission {
    use super::*;

    /// `tentpole status` as another user, who may get as far as the socket.
    fn status_as(manager: &Manager, options: &[&str]) -> std::process::Output {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(manager.dir.path(), open).expect("chmod");
        // The program itself may be out of reach for others.
        let program = manager.path("tentpole");
        if !program.exists() {
            // By another process: while this one has it open for writing, a child of another test may too.
            let copied = bounded(
                Command::new("cp")
                    .arg(env!("CARGO_BIN_EXE_tentpole"))
                    .arg(&program),
            );
            assert!(copied.status.success(), "{copied:?}");
        }
        bounded(
            Command::new("setpriv")
                .args(options)
                .arg(program)
                .arg("--control")
                .arg(manager.path("control"))
                .arg("status"),
        )
    }

    fn units(control: &str) -> String {
        format!("[manager]\n{control}\n[watcher.web]\ncmd = 'PROBE sleep'\n")
    }

    #[test]
    fn the_socket_is_its_owners_alone() {
        let manager = Manager::start(WEB);
        let mode = std::fs::metadata(manager.path("control"))
            .expect("is there")
            .permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
            0o600
        );
        if !needs_root() || !needs_program("setpriv") {
            return;
        }
        let output = status_as(&manager, &["--reuid", "65534", "--clear-groups"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("control_group"), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }

    #[test]
    fn an_open_socket_still_takes_no_orders_of_others() {
        if !needs_root() || !needs_program("setpriv") {
            return;
        }
        let manager = Manager::start(&units("control_mode = '0666'"));
        let output = status_as(&manager, &["--reuid", "65534", "--clear-groups"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty());
        assert!(manager.cli(&["status"]).status.success());
    }

    #[test]
    fn members_of_the_control_group_may_give_orders() {
        if !needs_root() || !needs_program("setpriv") {
            return;
        }
        let manager = Manager::start(&units("control_group = 12345"));
        for options in [
            &["--reuid", "65534", "--regid", "12345", "--clear-groups"][..],
            &[
                "--reuid", "65534", "--regid", "65534", "--groups", "1,12345",
            ],
        ] {
            let output = status_as(&manager, options);
            assert_eq!(output.status.code(), Some(0), "{options:?} {output:?}");
        }
        let output = status_as(
            &manager,
            &["--reuid", "65534", "--regid", "65534", "--clear-groups"],
        );
        assert_eq!(output.status.code(), Some(1), "{output:?}");
    }
}

/// `status --json`, field by field, as scripts read it.
#[test]
fn status_has_exactly_the_documented_shape() {
    let manager = Manager::start(
        r#"
        [socket.web]
        listen = "127.0.0.1:0"
        backlog = 77
        [watcher.web]
        cmd = "PROBE serve $(circus.socket.web)"
        "#,
    );
    let text = manager.ok(&["status", "--json"]);
    let status: Value = serde_json::from_str(&text).expect("is JSON");
    let address = manager.address("web");
    let since = |value: &Value| {
        let text = value.as_str().expect("a time").to_owned();
        let form: String = text
            .chars()
            .map(|c| if c.is_ascii_digit() { '0' } else { c })
            .collect();
        assert!(
            form.starts_with("0000-00-00T00:00:00") && form.ends_with('Z'),
            "{text}"
        );
        text
    };
    let worker = &status["watchers"][0]["workers"][0];
    let expected = format!(
        concat!(
            r#"{{"manager":{{"pid":{pid},"version":"{version}","state":"running","since":"{since}"}},"#,
            r#""sockets":[{{"name":"web","address":"{address}","type":"stream","state":"listening","#,
            r#""queue":0,"queue_limit":77,"watchers":["web"]}}],"#,
            r#""watchers":[{{"name":"web","state":"running","wanted":1,"ready":1,"restarts":0,"error":null,"#,
            r#""sockets":["web"],"#,
            r#""workers":[{{"wid":1,"pid":{worker},"state":"ready","since":"{worker_since}","status":null,"generation":1}}]}}]}}"#,
        ),
        pid = manager.manager_pid(),
        version = env!("CARGO_PKG_VERSION"),
        since = since(&status["manager"]["since"]),
        address = address,
        worker = worker["pid"],
        worker_since = since(&worker["since"]),
    );
    assert_eq!(text.trim_end(), expected);
    assert!(is_alive(worker["pid"].as_i64().expect("a pid") as i32));
}

#[test]
fn status_times_are_of_now() {
    let before = std::time::SystemTime::now();
    let manager = Manager::start(WEB);
    let output = bounded(Command::new("date").args(["-u", "+%FT%T"]));
    let now = String::from_utf8(output.stdout).expect("is UTF-8");
    let status = manager.status();
    let since = status["manager"]["since"].as_str().expect("a time");
    let output = bounded(
        Command::new("date")
            .args(["-u", "+%FT%T", "-d"])
            .arg(format!(
                "@{}",
                before
                    .duration_since(std::time::UNIX_EPOCH)
                    .expect("is later")
                    .as_secs()
            )),
    );
    let before = String::from_utf8(output.stdout).expect("is UTF-8");
    assert!(since >= before.trim_end(), "{since} {before}");
    assert!(since[..19] <= *now.trim_end(), "{since} {now}");
}

#[test]
fn what_is_typed_does_not_end_the_line_of_a_message() {
    let manager = Manager::start(WEB);
    for (args, code, told) in [
        (
            &["stop", "x\ny\u{1b}"][..],
            4,
            r"no such unit `x\ny\u{1b}`; ",
        ),
        (&["status", "x\ny"], 4, r"no such unit `x\ny`; "),
        (&["signal", "web", "H\nUP"], 1, r"`H\nUP` "),
        (
            &["--control", "x\ny", "status"],
            3,
            r"no manager is listening at `x\ny`; ",
        ),
    ] {
        let output = manager.cli(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.starts_with(&format!("tentpole: {told}")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let reply = manager.call("Stop", json!({"names": ["x\ny"]}));
    let message = reply["parameters"]["message"].as_str().expect("a text");
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn unknown_units_in_status_are_an_error() {
    let manager = Manager::start(WEB);
    let reply = manager.call("Status", json!({"names": ["web", "weg"]}));
    assert_eq!(error(&reply), "io.tentpole.Manager.NoSuchUnit");
    assert_eq!(reply["parameters"]["nearest"], "web");
}

#[test]
fn a_second_manager_does_not_take_the_control_socket_of_the_first() {
    let manager = Manager::start(WEB);
    let output = bounded(
        support::command(manager.dir.path())
            .arg("run")
            .arg(manager.path("units.toml")),
    );
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("another manager needs another `--control PATH`"),
        "{stderr}"
    );
    assert_eq!(manager.watcher("web")["state"], "running");
}

#[test]
fn another_manager_is_only_spoken_of_where_one_answers() {
    let dir = support::folder();
    let units = support::write_units(dir.path(), WEB);
    std::fs::write(dir.path().join("file"), "").expect("write a file");
    let long = "x".repeat(200);
    for path in ["", "file", "/dev/null", &long] {
        let mut manager = support::command(dir.path());
        manager
            .arg("--control")
            .arg(dir.path().join(path))
            .arg("run");
        let output = bounded(manager.arg(&units));
        assert_eq!(output.status.code(), Some(1), "{path}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("the control socket: "), "{stderr}");
        assert!(!stderr.contains("another manager"), "{stderr}");
    }
}

#[test]
fn a_control_socket_that_a_killed_manager_left_behind_is_taken_over() {
    let mut manager = Manager::start("[manager]\nlog_level = 'info'");
    // Both at once, so that none of them can do anything about it.
    let own = manager.manager_pid();
    support::kill(manager.pid(), libc::SIGSTOP);
    support::kill(own, libc::SIGKILL);
    manager.signal(libc::SIGKILL);
    manager.wait();
    assert!(manager.path("control").exists());
    let mut second = support::command(manager.dir.path());
    second.arg("run").arg(manager.path("units.toml"));
    let mut second = second
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("start");
    let answer = poll(|| {
        let output = bounded(support::command(manager.dir.path()).args(["status", "--json"]));
        output.status.success().then_some(output.stdout)
    });
    let status: Value = serde_json::from_slice(&answer.expect("an answer")).expect("is JSON");
    assert_ne!(status["manager"]["pid"], own);
    support::kill(second.id() as i32, libc::SIGTERM);
    assert!(second.wait().expect("wait").success());
}

#[test]
fn a_control_socket_whose_file_is_gone_comes_back_by_sighup() {
    let mut manager = Manager::start(WEB);
    let before = manager.snapshot();
    let mut old = Client::new(&manager);
    std::fs::remove_file(manager.path("control")).expect("remove the file");
    manager.signal(libc::SIGHUP);
    manager.wait_for_log("bound anew");
    assert_eq!(manager.snapshot(), before);
    old.send("Status", json!({}));
    assert_eq!(error(&old.receive()), "none", "who was connected still is");
    // What is held for the next manager is the new one.
    manager.crash();
    assert_eq!(manager.snapshot(), before);

    // Another's file is left alone if somebody listens there.
    std::fs::remove_file(manager.path("control")).expect("remove the file");
    let other = UnixListener::bind(manager.path("control")).expect("bind");
    manager.signal(libc::SIGHUP);
    manager.wait_for_log("no command reaches this manager");
    drop(other);
    manager.signal(libc::SIGHUP);
    let found = poll(|| (manager.log().matches("bound anew").count() == 2).then_some(()));
    assert!(found.is_some(), "{}", manager.log());
    assert_eq!(manager.snapshot(), before);
    assert_eq!(manager.stop().code(), Some(0));
    assert!(!manager.path("control").exists());
}
