//! Tests of the configuration as a whole.
#![allow(clippy::unwrap_used)]

use super::*;

fn sources(toml: &str) -> (tempfile::TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("flotte.toml");
    std::fs::write(&path, toml).unwrap();
    (
        dir,
        Sources {
            file: Some(path),
            ..Sources::default()
        },
    )
}

fn load(toml: &str) -> Result<Loaded, Vec<ConfigError>> {
    let (_dir, sources) = sources(toml);
    Config::load(&sources)
}

fn config(toml: &str) -> Config {
    load(toml).unwrap().config
}

/// The errors as text, without the name of the file.
fn errors(toml: &str) -> Vec<String> {
    let (dir, sources) = sources(toml);
    let prefix = format!("{}/", dir.path().display());
    Config::load(&sources)
        .unwrap_err()
        .iter()
        .map(|error| error.to_string().replace(&prefix, ""))
        .collect()
}

fn error(toml: &str) -> String {
    let mut errors = errors(toml);
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors.remove(0)
}

fn environment(variables: &[(&str, &str)]) -> Sources {
    let environment = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Sources {
        environment,
        ..Sources::default()
    }
}

fn origin_of<'a>(loaded: &'a Loaded, key: &str) -> &'a Origin {
    &loaded
        .effective
        .iter()
        .find(|value| value.key == key)
        .unwrap()
        .origin
}

#[test]
fn nothing_given_is_the_defaults() {
    let loaded = Config::load(&Sources::default()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let listener = &loaded.config.listeners[0];
    assert_eq!(
        (listener.name.as_str(), listener.bind.to_string().as_str()),
        ("mqtt", "127.0.0.1:1883")
    );
    assert!(loaded.config.auth.takes_anonymous(listener));
    assert_eq!(loaded.config.cluster.bind.to_string(), "127.0.0.1:7883");
    assert_eq!(loaded.config.admin.bind.to_string(), "127.0.0.1:8080");
}

#[test]
fn the_printed_default_file_reads_back_as_the_defaults() {
    let file = default_file();
    assert_eq!(config(&file), Config::default(), "{file}");
}

#[test]
fn the_printed_default_file_names_every_known_key() {
    let file = default_file();
    for known in known_keys() {
        let (section, key) = known.split_once('.').unwrap();
        let at = file.find(&format!("[{section}]")).unwrap();
        assert!(
            file[at..].lines().any(|line| line
                .trim_start_matches("# ")
                .starts_with(&format!("{key} ="))),
            "{known}"
        );
    }
}

#[test]
fn every_section_is_read_from_the_file() {
    let config = config(
        r#"
        [node]
        name = "n1"
        data_dir = "/var/lib/flotte"
        [[listener]]
        bind = "127.0.0.1:2883"
        versions = [5]
        max_qos = 1
        [mqtt]
        max_packet_size = "64 KiB"
        [session]
        overflow = "drop-new"
        queue_max_bytes = 4096
        [retained]
        max_messages = 5
        [cluster]
        join = ["n2:7883", "n3:7883"]
        bootstrap_expect = 3
        [log]
        format = "json"
        level = "debug"
        [sys]
        interval_s = 0
        [metrics]
        "#,
    );
    assert_eq!(config.node.effective_name().as_str(), "n1");
    assert_eq!(config.mqtt.max_packet_size.value(), 65_536);
    assert_eq!(config.session.queue_max_bytes.value(), 4096);
    assert_eq!(config.session.overflow, session::Overflow::DropNew);
    assert_eq!(config.cluster.join.len(), 2);
    assert_eq!(config.cluster.first_cluster_nodes(), Some(3));
    assert_eq!(config.log.format, log::Format::Json);
    assert_eq!(
        config.max_qos(&config.listeners[0]),
        flotte_mqtt::QoS::AtLeastOnce
    );
    assert_eq!(config.listeners[0].versions, [flotte_mqtt::Version::V5]);
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    assert_eq!(
        error("[mqtt]\nmax_qos = 1\nmax_paket_size = 5\n"),
        "flotte.toml:3: unknown key `mqtt.max_paket_size`, the nearest known one is `mqtt.max_packet_size`"
    );
    assert_eq!(
        error("[[listener]]\nbnid = \"127.0.0.1:1883\"\n"),
        "flotte.toml:2: unknown key `listener.bnid`, the nearest known one is `listener.bind`"
    );
    assert_eq!(
        error("[node]\njoin = [\"a:1\"]\n"),
        "flotte.toml:2: unknown key `node.join`, the nearest known one is `cluster.join`"
    );
    assert_eq!(
        error("[listeners]\n"),
        "flotte.toml:1: unknown key `listeners`, the nearest known one is `listener`"
    );
    assert_eq!(
        error("zzzzzzzz = 1\n"),
        "flotte.toml:1: unknown key `zzzzzzzz`"
    );
}

#[test]
fn a_key_or_value_of_a_later_version_says_so() {
    for (toml, shown) in [
        (
            "[[listener]]\nproxy_protocol = true\n",
            "`listener.proxy_protocol = true`",
        ),
        (
            "[cluster.tls]\ncert = \"a.pem\"\n",
            "`cluster.tls.cert = \"a.pem\"`",
        ),
        (
            "[durability]\nack = \"local\"\n",
            "`durability.ack = \"local\"`",
        ),
        (
            "[[durability.topic]]\nfilter = \"#\"\n",
            "`durability.topic = [{ \"filter\" }]`",
        ),
        ("[auth]\nchain = [\"jwt\"]\n", "`auth.chain = [\"jwt\"]`"),
        (
            "[auth.jwt]\nissuer = \"me\"\n",
            "`auth.jwt.issuer = \"me\"`",
        ),
        (
            "[admin]\ntokens_file = \"t\"\n",
            "`admin.tokens_file = \"t\"`",
        ),
    ] {
        let error = error(toml);
        assert!(
            error.contains(shown) && error.ends_with("is not available in this version"),
            "{error}"
        );
    }
}

#[test]
fn a_later_key_may_say_its_default() {
    config(
        "[[listener]]
proxy_protocol = false
[admin]
dashboard = true
",
    );
}

#[test]
fn a_bad_value_is_named_with_what_is_allowed() {
    assert_eq!(
        error("[mqtt]\nmax_packet_size = \"1 MB\"\n"),
        "flotte.toml:2: `mqtt.max_packet_size = \"1 MB\"` is not allowed: allowed is bytes, or a size as \"64 KiB\", \"1 MiB\" or \"2 GiB\", from 128 B to 268435460 B"
    );
    assert_eq!(
        error("[session]\noverflow = \"drop\"\n"),
        "flotte.toml:2: `session.overflow = \"drop\"` is not allowed: allowed is \"drop-old\" or \"drop-new\""
    );
    assert_eq!(
        error("[mqtt]\nreceive_maximum = 0\n"),
        "flotte.toml:2: `mqtt.receive_maximum = 0` is not allowed: allowed is a whole number, from 1 to 65535"
    );
    assert!(error("[cluster]\nvoters = 4\n").ends_with("is refused: allowed are 3 and 5"));
    assert!(error("[cluster]\njoin = \"a:1\"\n").contains("allowed is a list"));
}

#[test]
fn every_error_is_reported_in_the_order_of_the_file() {
    let errors = errors(
        "[node]\nnam = \"a\"\n[mqtt]\nmax_qos = 7\nserver_reference = \"\"\n[cluster]\nbind = \"here\"\n",
    );
    let lines: Vec<&str> = errors
        .iter()
        .map(|error| error.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            "flotte.toml:2",
            "flotte.toml:4",
            "flotte.toml:5",
            "flotte.toml:7"
        ]
    );
}

#[test]
fn what_is_not_toml_is_an_error_with_its_line() {
    let errors = errors("[node]\nname = \n");
    assert!(errors[0].starts_with("flotte.toml:2: "), "{errors:?}");
}

#[test]
fn a_file_that_is_not_there_is_an_error() {
    let sources = Sources {
        file: Some("does/not/exist.toml".into()),
        ..Sources::default()
    };
    let errors = Config::load(&sources).unwrap_err();
    assert!(matches!(
        errors.as_slice(),
        [ConfigError::Unreadable { .. }]
    ));
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let (_dir, mut sources) =
        sources("[node]\nname = \"file\"\ndata_dir = \"file\"\n[log]\nlevel = \"warn\"\n");
    sources.environment = vec![
        ("FLOTTE_NODE__NAME".into(), "env".into()),
        ("FLOTTE_NODE__DATA_DIR".into(), "env".into()),
    ];
    sources.flags = vec![Flag {
        flag: "--node-name",
        key: "node.name",
        value: Raw::Word("flag".into()),
    }];
    let loaded = Config::load(&sources).unwrap();
    assert_eq!(loaded.config.node.effective_name().as_str(), "flag");
    assert_eq!(loaded.config.node.data_dir.to_str(), Some("env"));
    assert_eq!(
        *origin_of(&loaded, "node.name"),
        Origin::Flag("--node-name")
    );
    assert_eq!(
        *origin_of(&loaded, "node.data_dir"),
        Origin::Environment("FLOTTE_NODE__DATA_DIR".into())
    );
    assert!(matches!(
        origin_of(&loaded, "log.level"),
        Origin::File { line: 5, .. }
    ));
    assert_eq!(*origin_of(&loaded, "log.format"), Origin::Default);
    let shown = effective_values(&loaded.effective);
    assert!(
        shown
            .lines()
            .any(|line| line.starts_with("node.name = \"flag\" ")
                && line.ends_with(" # flag --node-name"))
    );
}

#[test]
fn environment_variables_reach_nested_keys_lists_and_listeners() {
    let loaded = Config::load(&environment(&[
        ("FLOTTE_CLUSTER__JOIN", "a:1, b:2"),
        ("FLOTTE_AUTH__PASSWORD_FILE__FILE", "/p"),
        ("FLOTTE_LISTENER__MQTT__BIND", "127.0.0.1:0"),
        ("FLOTTE_LISTENER__MQTT__MAX_QOS", "1"),
        ("FLOTTE_MQTT__CONNECT_TIMEOUT_S", "2"),
        // Not ours: container runtimes make such.
        ("FLOTTE_PORT", "tcp://10.0.0.1:1883"),
        ("FLOTTE_SERVICE_HOST", "10.0.0.1"),
        // Set but empty is not given.
        ("FLOTTE_NODE__NAME", ""),
    ]))
    .unwrap();
    assert_eq!(loaded.config.cluster.join.len(), 2);
    assert_eq!(loaded.config.auth.methods(), [auth::Method::PasswordFile]);
    assert_eq!(loaded.config.listeners.len(), 1);
    assert_eq!(loaded.config.listeners[0].bind.port(), Some(0));
    assert_eq!(loaded.config.mqtt.connect_timeout_s, 2);
    assert_eq!(loaded.config.node.name, None);
}

#[test]
fn an_unknown_variable_names_the_nearest_one() {
    let errors = Config::load(&environment(&[("FLOTTE_CLUSTER__JOYN", "a:1")])).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "environment FLOTTE_CLUSTER__JOYN: unknown key `FLOTTE_CLUSTER__JOYN`, the nearest known one is `FLOTTE_CLUSTER__JOIN`"
    );
}

#[test]
fn a_bind_flag_changes_the_listener_of_that_name_and_leaves_others() {
    let (_dir, mut sources) = sources(
        "[[listener]]\nname = \"inner\"\nbind = \"127.0.0.1:9\"\n[[listener]]\nname = \"mqtt\"\nversions = [4]\n",
    );
    let bind = Flag {
        flag: "--mqtt-bind",
        key: "listener.mqtt.bind",
        value: Raw::Word("127.0.0.1:7".into()),
    };
    sources.flags = vec![bind.clone()];
    let listeners = Config::load(&sources).unwrap().config.listeners;
    assert_eq!(listeners.len(), 2);
    assert_eq!(
        (listeners[1].bind.port(), listeners[1].versions.len()),
        (Some(7), 1)
    );

    let alone = Config::load(&Sources {
        flags: vec![bind],
        ..Sources::default()
    })
    .unwrap()
    .config
    .listeners;
    assert_eq!((alone.len(), alone[0].bind.port()), (1, Some(7)));
}

#[test]
fn the_websocket_flag_makes_a_listener() {
    let flags = vec![Flag {
        flag: "--ws-bind",
        key: "listener.ws.bind",
        value: Raw::Word("127.0.0.1:9083".into()),
    }];
    let config = Config::load(&Sources {
        flags,
        ..Sources::default()
    })
    .unwrap()
    .config;
    let [ws] = &config.listeners[..] else {
        panic!("{:?}", config.listeners);
    };
    assert_eq!(ws.protocol, listener::Protocol::Ws);
    assert_eq!(ws.bind.port(), Some(9083));
}

#[test]
fn a_listener_on_the_network_needs_authentication_or_consent() {
    let open = "[[listener]]\nbind = \"0.0.0.0:1883\"\n";
    assert!(
        error(open)
            .starts_with("flotte.toml:2: `listener.mqtt.bind = \"0.0.0.0:1883\"` is refused: ")
    );
    assert!(error(&format!("{open}[auth]\nallow_anonymous = false\n")).contains("is refused"));
    let consent = config(&format!("{open}[auth]\nallow_anonymous = true\n"));
    assert!(consent.auth.takes_anonymous(&consent.listeners[0]));
    let consent = config(&format!("{open}allow_anonymous = true\n"));
    assert!(consent.auth.takes_anonymous(&consent.listeners[0]));
    let password = config(&format!("{open}[auth.password-file]\nfile = \"p\"\n"));
    assert!(!password.auth.takes_anonymous(&password.listeners[0]));
    // An explicit no of the listener is stronger than a yes for all.
    assert!(
        error(&format!(
            "{open}allow_anonymous = false\n[auth]\nallow_anonymous = true\n"
        ))
        .contains("is refused")
    );
}

#[test]
fn every_address_that_only_this_machine_reaches_is_loopback() {
    for address in [
        "127.0.0.1:1",
        "127.8.9.1:1",
        "[::1]:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        assert!(is_loopback(address.parse().unwrap()), "{address}");
    }
    for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
        assert!(!is_loopback(address.parse().unwrap()), "{address}");
    }
}

#[test]
fn authentication_ends_anonymous_service_on_loopback_too() {
    let with_passwords = config("[auth.password-file]\nfile = \"p\"\n");
    assert!(
        !with_passwords
            .auth
            .takes_anonymous(&with_passwords.listeners[0])
    );
    let both = config("[auth]\nallow_anonymous = true\n[auth.password-file]\nfile = \"p\"\n");
    assert!(both.auth.takes_anonymous(&both.listeners[0]));
}

#[test]
fn nobody_able_to_connect_is_a_warning() {
    assert_eq!(
        load("[auth]\nallow_anonymous = false\n")
            .unwrap()
            .warnings
            .len(),
        1
    );
}

#[test]
fn the_password_method_needs_its_file() {
    assert!(error("[auth]\nchain = [\"password-file\"]\n").contains("auth.password-file.file"));
}

#[test]
fn the_cluster_port_on_the_network_needs_consent_and_a_name() {
    let consent = "[cluster]\nbind = \"10.0.0.1:7883\"\n";
    assert!(error(consent).contains("`cluster.insecure = true`"));
    let plain = config(&format!("{consent}insecure = true\n"));
    assert_eq!(
        plain.cluster.advertised(plain.cluster.bind).to_string(),
        "10.0.0.1:7883"
    );
    let unspecified = "[cluster]\nbind = \"0.0.0.0:7883\"\ninsecure = true\n";
    assert!(error(unspecified).contains("`cluster.advertise`"));
    config(&format!("{unspecified}advertise = \"node1:7883\"\n"));
}

#[test]
fn an_election_has_to_fit_into_a_lease() {
    config("[cluster]\nnode_down_after_ms = 1920\n");
    assert!(error("[cluster]\nnode_down_after_ms = 1919\n").contains("at least 1920"));
}

#[test]
fn a_first_cluster_is_made_alone_by_expectation_or_not_at_all() {
    assert_eq!(config("").cluster.first_cluster_nodes(), Some(1));
    assert_eq!(
        config("[cluster]\njoin = [\"a:1\"]\n")
            .cluster
            .first_cluster_nodes(),
        None
    );
    let discovers = "[cluster]\ndiscover_dns = \"_flotte._tcp.example\"\n";
    assert_eq!(config(discovers).cluster.first_cluster_nodes(), None);
    let expects = format!("{discovers}bootstrap_expect = 3\n");
    assert!(load(&expects).unwrap().warnings.is_empty());
    assert_eq!(
        load("[cluster]\nbootstrap_expect = 3\n")
            .unwrap()
            .warnings
            .len(),
        1
    );
}

#[test]
fn the_admin_port_on_the_network_only_serves_monitoring() {
    assert_eq!(config("").admin.exposure(), admin::Exposure::Full);
    assert_eq!(
        config("[admin]\nbind = \"0.0.0.0:8080\"\n")
            .admin
            .exposure(),
        admin::Exposure::MonitoringOnly
    );
}

#[test]
fn listeners_have_different_names_and_addresses() {
    let two = "[[listener]]\nbind = \"127.0.0.1:1\"\n[[listener]]\nbind = \"127.0.0.1:2\"\n";
    assert!(error(two).contains("another listener has this name"));
    assert!(
        error("[admin]\nbind = \"127.0.0.1:1883\"\n")
            .contains("`admin.bind` takes this address already")
    );
    assert!(
        error("[[listener]]\nbind = \"0.0.0.0:8080\"\n[auth]\nallow_anonymous = true\n")
            .contains("`admin.bind` takes")
    );
    config(
        "[[listener]]\nbind = \"127.0.0.1:0\"\n[[listener]]\nname = \"b\"\nbind = \"127.0.0.1:0\"\n",
    );
}

#[test]
fn a_listener_speaks_at_least_one_version_and_each_once() {
    assert!(error("[[listener]]\nversions = []\n").contains("at least one version"));
    assert!(error("[[listener]]\nversions = [4, 4]\n").contains("twice"));
}

#[test]
fn log_levels_are_levels_or_directives() {
    for good in ["info", "trace", "warn,flotte::connection=debug"] {
        config(&format!("[log]\nlevel = \"{good}\"\n"));
    }
    for bad in ["loud", "", "flotte", "flotte=loud"] {
        assert!(error(&format!("[log]\nlevel = \"{bad}\"\n")).contains("is not allowed"));
    }
}
