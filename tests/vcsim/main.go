// A vCenter for tests: govmomi's simulator behind a front of our own, on the loopback, over TLS.
//
// The front answers what the simulator cannot (passwords, expiry, privileges, clocks, performance
// samples with a known truth, failing tasks, outages) and hands on the rest. It is told what to do
// by flags at the start and by JSON posted to /control on a second port; see README.md.
//
// The process ends when its standard input closes, so that none outlives its test.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/simulator"
)

type options struct {
	folder    string
	port      int
	clusters  int
	hosts     int
	machines  int
	standby   int
	datastore int
	pools     int
	light     int
	seed      int64
	shuffle   bool
	api       string
}

func parseFlags() options {
	var o options
	flag.StringVar(&o.folder, "folder", "", "where the certificate and the datastores lie")
	flag.IntVar(&o.port, "port", 0, "port of the API; 0: any free one")
	flag.IntVar(&o.clusters, "clusters", 1, "clusters")
	flag.IntVar(&o.hosts, "hosts", 2, "hosts per cluster")
	flag.IntVar(&o.machines, "machines", 2, "virtual machines per cluster (and per standalone host)")
	flag.IntVar(&o.standby, "standalone", 0, "hosts outside of a cluster")
	flag.IntVar(&o.datastore, "datastores", 2, "datastores")
	flag.IntVar(&o.pools, "pools", 0, "resource pools below each cluster's own")
	flag.IntVar(&o.light, "light", 0, "further virtual machines that share one set of devices; to be read, not changed")
	flag.Int64Var(&o.seed, "seed", 1, "decides the counter ids when they are shuffled")
	flag.BoolVar(&o.shuffle, "shuffle", true, "counter ids that are unlike those of other servers")
	flag.StringVar(&o.api, "api", versions[0], "version of the API; older: "+strings.Join(versions[1:], ", "))
	flag.Parse()
	if !contains(versions, o.api) {
		log.Fatalf("-api %s: known are %s", o.api, strings.Join(versions, ", "))
	}
	if o.folder == "" {
		log.Fatal("-folder is needed: an existing directory of this server's own")
	}
	return o
}

func buildModel(o options) *simulator.Model {
	model := simulator.VPX()
	model.Cluster, model.ClusterHost, model.Host = o.clusters, o.hosts, o.standby
	model.Machine, model.Datastore, model.Pool = o.machines, o.datastore, o.pools
	model.ServiceContent.About.ApiVersion = o.api
	release := o.api
	if parts := strings.SplitN(o.api, ".", 4); len(parts) > 3 {
		release = strings.Join(parts[:3], ".")
	}
	model.ServiceContent.About.Version = release
	model.ServiceContent.About.FullName = "VMware vCenter Server " + release + " build-simulated"
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	return model
}

// innerHandler is the simulator's own HTTP handler; its plain listener is not needed.
func innerHandler(model *simulator.Model) http.Handler {
	server := model.Service.NewServer()
	_ = server.Listener.Close()
	return server.Config.Handler
}

func main() {
	o := parseFlags()
	// The simulator keeps its datastores in temporary folders: ours, so that they go with it.
	if err := os.Setenv("TMPDIR", o.folder); err != nil {
		log.Fatal(err)
	}
	certificate, caFile, err := certificateIn(o.folder)
	if err != nil {
		log.Fatal(err)
	}
	model := buildModel(o)
	front := newFront(innerHandler(model), o)
	if err := front.openLibraries(); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", o.port))
	if err != nil {
		log.Fatal(err)
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() { log.Fatal(front.serveAPI(listener, certificate)) }()
	go func() { log.Fatal(http.Serve(control, http.HandlerFunc(front.serveControl))) }()

	_ = json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"port":       listener.Addr().(*net.TCPAddr).Port,
		"control":    control.Addr().(*net.TCPAddr).Port,
		"ca_file":    filepath.ToSlash(caFile),
		"thumbprint": thumbprint(certificate),
	})
	_, _ = io.Copy(io.Discard, os.Stdin)
}
