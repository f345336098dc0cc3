package main

import (
	"context"
	"net/http"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// ownContext is for calls that the front makes in its own name.
func ownContext(on types.ManagedObjectReference) *simulator.Context {
	return &simulator.Context{
		Context: context.Background(),
		Map:     simulator.Map,
		Caller:  &on,
		Session: &simulator.Session{
			UserSession: types.UserSession{UserName: "vcsim"},
			Registry:    simulator.NewRegistry(),
		},
	}
}

// postMigration writes the event of a vMotion by DRS, at a time on the server's clock.
func postMigration(vm *simulator.VirtualMachine, from, to *simulator.HostSystem, at time.Time) {
	manager := simulator.Map.EventManager()
	event := &types.DrsVmMigratedEvent{VmMigratedEvent: types.VmMigratedEvent{
		VmEvent: types.VmEvent{Event: types.Event{
			Vm: &types.VmEventArgument{
				EntityEventArgument: types.EntityEventArgument{Name: vm.Name}, Vm: vm.Self,
			},
			Host: hostArgument(to),
		}},
		SourceHost: *hostArgument(from),
	}}
	simulator.Map.WithLock(manager, func() {
		manager.PostEvent(ownContext(manager.Self), &types.PostEvent{EventToPost: event})
		event.CreatedTime = at
	})
}

func hostArgument(host *simulator.HostSystem) *types.HostEventArgument {
	return &types.HostEventArgument{
		EntityEventArgument: types.EntityEventArgument{Name: host.Name}, Host: host.Self,
	}
}

// queryEvents adds what the simulator leaves out of the filter: the time.
func (f *front) queryEvents(w http.ResponseWriter, r *http.Request, q request) {
	method, err := simulator.UnmarshalBody(types.TypeFunc(), q.body)
	if err != nil {
		invalidArgument(w, "filter")
		return
	}
	asked := method.Body.(*types.QueryEvents)
	manager := simulator.Map.EventManager()
	var body *methods.QueryEventsBody
	simulator.Map.WithLock(manager, func() {
		body = manager.QueryEvents(ownContext(manager.Self), asked).(*methods.QueryEventsBody)
	})
	if body.Res == nil {
		f.forward(w, r, q)
		return
	}
	answer := new(types.QueryEventsResponse)
	for _, event := range body.Res.Returnval {
		if within(event.GetEvent().CreatedTime, asked.Filter.Time) {
			answer.Returnval = append(answer.Returnval, event)
		}
	}
	writeValue(w, "QueryEventsResponse", answer)
}

func within(at time.Time, limits *types.EventFilterSpecByTime) bool {
	if limits == nil {
		return true
	}
	return (limits.BeginTime == nil || !at.Before(*limits.BeginTime)) &&
		(limits.EndTime == nil || !at.After(*limits.EndTime))
}
