package main

import (
	"net/http"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// addClock gives a host the date system that the simulator lacks; the front answers for it.
func addClock(host *simulator.HostSystem) {
	clock := new(mo.HostDateTimeSystem)
	clock.Self = types.ManagedObjectReference{
		Type: "HostDateTimeSystem", Value: "dateTimeSystem-" + host.Self.Value,
	}
	clock.DateTimeInfo = types.HostDateTimeInfo{
		TimeZone:  types.HostDateTimeSystemTimeZone{Key: "UTC", Name: "UTC", Description: "UTC"},
		NtpConfig: &types.HostNtpConfig{Server: []string{"ntp.test"}},
	}
	simulator.Map.Put(clock)
	host.ConfigManager.DateTimeSystem = &clock.Self
}

// queryDateTime is a host's own clock.
func (f *front) queryDateTime(w http.ResponseWriter, _ *http.Request, q request) {
	s := f.snapshot()
	if s.HostDateForbidden {
		noPermission(w, q.this, "Host.Config.DateTime")
		return
	}
	host := f.hostOfClock(q.this.value)
	skew, _ := skewOf(s.HostSkewS, host)
	writeAnswer(w, "QueryDateTimeResponse",
		"<returnval>"+stamp(f.now().Add(seconds(skew)))+"</returnval>")
}

func (f *front) hostOfClock(clock string) string {
	for _, e := range simulator.Map.All("HostSystem") {
		host := e.(*simulator.HostSystem)
		if of := host.ConfigManager.DateTimeSystem; of != nil && of.Value == clock {
			return host.Name
		}
	}
	return ""
}
