// Package transport moves bytes between nodes: one TCP port per node, TLS 1.3 under the cluster's own CA, and on it Raft, RPC,
// gossip and join, told apart by ALPN. It also owns certificates, join tokens and an in-memory network for tests (FakeNet).
//
// Callers: cmd wires a Mux, a Dialer and an RPC client; consensus takes the raft and gossip listeners; the agent registers RPCs;
// bootstrap and join use the CA, the Token and Join. Simulations replace TCP by FakeNet and keep everything else.
//
// Invariants
//   - Every connection but join carries a client certificate of the cluster's CA that names the cluster and the node.
//   - Cluster id and incarnation are part of the handshake in both directions; a peer of another one never gets a byte through.
//   - A successful Dial means that the server has accepted our certificate, not only that we accepted the server's.
//   - Nobody who has not authenticated can hold more than a bounded number of handshakes or join connections, or delay others.
//   - A join client sends its secret only to a server whose CA has the fingerprint of its token.
//
// It must never decide who may do what (it tells the Peer; the handler decides), never log secrets, and never give Raft state,
// PostgreSQL or Citus a meaning.
package transport
