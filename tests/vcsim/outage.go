package main

import (
	"net"
	"net/http"
)

// outage is a time in which the server does not do its work; unix seconds, to 0 is for ever.
type outage struct {
	Mode  string  `json:"mode"` // perf_503 and perf_fault are for QueryPerf alone
	FromS float64 `json:"from_s"`
	ToS   float64 `json:"to_s"`
}

func (f *front) outageNow() string {
	now := unixS(f.now())
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.state.Outages {
		if o.FromS <= now && (o.ToS == 0 || now < o.ToS) {
			return o.Mode
		}
	}
	return ""
}

var outageModes = []string{"refuse", "503", "hang", "perf_503", "perf_fault"}

// gate closes connections before a word is said while the server is out.
type gate struct {
	net.Listener
	front *front
}

func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil || g.front.outageNow() != "refuse" {
			return c, err
		}
		abort(c)
	}
}

func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}

// interrupted answers (or not at all) when the server is out for this request.
func (f *front) interrupted(w http.ResponseWriter, r *http.Request, method string) bool {
	mode := f.outageNow()
	perf := method == "QueryPerf"
	switch {
	case mode == "refuse":
		panic(http.ErrAbortHandler) // ends the connection without an answer
	case mode == "hang":
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case mode == "503", mode == "perf_503" && perf:
		http.Error(w, "503 Service Unavailable", http.StatusServiceUnavailable)
	case mode == "perf_fault" && perf:
		writeFault(w, "A general system error occurred: the statistics are not to be had.",
			"SystemError", "<reason>vpxd-stats is not there</reason>")
	default:
		return false
	}
	f.count("interrupted", 1)
	return true
}
