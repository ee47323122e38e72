//! MQTT in the frames of WebSocket.

use flotte_tests::websocket::{BINARY, CONTINUATION, FIN, FramePlan, Request, TEXT, WebSocket};
use flotte_tests::{Packet as _, connect, fresh, pingreq, pingresp, publish};

use crate::target::Target;

/// A WebSocket on which nothing was sent yet; none, and a word about it, where the broker has no such listener.
async fn dial(target: &Target) -> Option<WebSocket> {
    let Some(address) = target.ws else {
        eprintln!("FLOTTE_TEST_WS_ADDR names no listener for WebSocket: nothing to do");
        return None;
    };
    Some(WebSocket::dial(address).await)
}

pub async fn text_frames_end_the_connection(target: Target) {
    let Some(mut socket) = dial(&target).await else {
        return;
    };
    let first = connect(fresh("c")).encode(target.version);
    socket.send(FIN | BINARY, &first).await;
    let (first, _) = socket.next().await.expect("CONNACK");
    assert_eq!(first, FIN | BINARY, "what the server sends is binary, too");
    socket
        .send(FIN | TEXT, &pingreq().encode(target.version))
        .await;
    socket.expect_close(1003).await;
}

pub async fn packets_are_cut_into_frames_at_will(target: Target) {
    for payload in [1, 5, usize::MAX] {
        let Some(socket) = dial(&target).await else {
            return;
        };
        let plan = FramePlan {
            payload,
            fragments: payload == 5,
            ..FramePlan::default()
        };
        let client = socket.into_client_with(target.version, plan);
        let mut client = client.accepted(connect(fresh("c"))).await;
        let topic = fresh("frames");
        client.subscribe(&topic, 0).await;
        // Two packets and a half, as one piece of data.
        let message = publish(&topic)
            .payload("in one frame")
            .encode(target.version);
        let ping = pingreq().encode(target.version);
        client
            .send_raw(&[&message[..], &ping[..], &message[..4]].concat())
            .await;
        client.take("in one frame").await;
        client.recv(pingresp()).await;
        client.send_raw(&message[4..]).await;
        client.take("in one frame").await;
        client.leave().await;
    }
    // Both of a packet's halves in frames of one message.
    let Some(mut socket) = dial(&target).await else {
        return;
    };
    let packet = connect(fresh("c")).encode(target.version);
    let (head, tail) = packet.split_at(packet.len() / 2);
    socket.send(BINARY, head).await;
    socket.send(FIN | CONTINUATION, tail).await;
    let (_, connack) = socket.next().await.expect("CONNACK");
    assert_eq!(connack[0], 0x20);
}

pub async fn without_the_subprotocol_there_is_no_websocket(target: Target) {
    let Some(address) = target.ws else { return };
    for offer in [None, Some("chat"), Some("MQTT")] {
        let request = Request::default().header("Sec-WebSocket-Protocol", offer);
        let socket = WebSocket::ask(address, &request).await;
        assert_eq!(socket.response.status, 400, "{offer:?}");
    }
}

pub async fn the_selected_subprotocol_is_mqtt(target: Target) {
    let Some(address) = target.ws else { return };
    for offer in ["mqtt", "chat, mqtt", "mqttv3.1, mqtt"] {
        let request = Request::default().header("Sec-WebSocket-Protocol", Some(offer));
        let socket = WebSocket::ask(address, &request).await;
        socket.assert_granted();
        let selected = socket.response.header("Sec-WebSocket-Protocol");
        assert_eq!(selected, Some("mqtt"), "{offer}");
    }
}
