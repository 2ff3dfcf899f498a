{{/* What cannot be meant is refused in a sentence. */}}
{{- define "amo.contradictions" -}}
{{- $v := .Values -}}
{{- if and $v.ingress.enabled $v.httpRoute.enabled }}{{ fail "ingress.enabled and httpRoute.enabled exclude each other: requests come in by one of them" }}{{ end -}}
{{- if and $v.httpRoute.enabled (empty $v.httpRoute.parentRefs) }}{{ fail "httpRoute.enabled needs httpRoute.parentRefs: the gateways that it joins" }}{{ end -}}
{{- if and $v.httpRoute.enabled (not (.Capabilities.APIVersions.Has "gateway.networking.k8s.io/v1")) }}{{ fail "httpRoute.enabled, but the cluster knows no HTTPRoute: install the Gateway API first (helm template: --api-versions gateway.networking.k8s.io/v1)" }}{{ end -}}
{{- range $name := list "serviceMonitor" "prometheusRule" -}}
{{- if and (index $v $name).enabled (not ($.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}{{ fail (printf "%s.enabled, but the cluster knows no such resource: install Prometheus' operator first (helm template: --api-versions monitoring.coreos.com/v1)" $name) }}{{ end -}}
{{- end -}}
{{- with $v.service.autoscaling }}{{ if and .enabled (gt (int .minReplicas) (int .maxReplicas)) }}{{ fail "service.autoscaling.minReplicas is more than service.autoscaling.maxReplicas" }}{{ end }}{{ end -}}
{{- if ge (int $v.service.drainSeconds) (int $v.service.terminationGracePeriodSeconds) }}{{ fail "service.drainSeconds must be less than service.terminationGracePeriodSeconds: the pod would be killed before it has ended" }}{{ end -}}
{{- if and $v.operator.enabled $v.keyring.existingSecret }}{{ fail "keyring.existingSecret needs operator.enabled=false: with the operator the keyring is made from integrations" }}{{ end -}}
{{- range $key := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- if hasKey $v.podLabels $key }}{{ fail (printf "podLabels has %s, by which pods are selected: it cannot be changed" $key) }}{{ end -}}
{{- end -}}
{{- range $name := list "pool_mode" "listen_addr" "listen_port" "unix_socket_dir" "auth_type" "auth_file" "ignore_startup_parameters" -}}
{{- if hasKey $v.pgbouncer.settings $name }}{{ fail (printf "pgbouncer.settings has %s, which the chart sets itself" $name) }}{{ end -}}
{{- end -}}
{{- range $v.extraEnv -}}
{{- if hasKey $v.settings (.name | default "") }}{{ fail (printf "extraEnv has %s, and so has settings: say it once" .name) }}{{ end -}}
{{- end -}}
{{- $secret := printf "%s-static-keyring" (include "amo.fullname" .) -}}
{{- if and $v.operator.enabled (lookup "v1" "Secret" .Release.Namespace $secret) (not (lookup "v1" "Secret" .Release.Namespace (include "amo.keyringSecret" .))) }}{{ fail (printf "operator.enabled, but the keys so far are in the Secret %s, which the operator does not know: senders would be refused. Copy it to %s (kubectl get, other name, kubectl create), or delete it to begin with new keys" $secret (include "amo.keyringSecret" .)) }}{{ end -}}
{{- $names := list -}}
{{- range $v.integrations -}}
{{- if has .name $names }}{{ fail (printf "integrations has %s twice: names are unique" .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- if and .clientSecret .clientSecretRef }}{{ fail (printf "integration %s has clientSecret and clientSecretRef: the secret is either generated or read from a Secret" .name) }}{{ end -}}
{{- if not (or .clientSecret .clientSecretRef (hasKey . "urlKey")) }}{{ fail (printf "integration %s has no key: set clientSecretRef, clientSecret or urlKey" .name) }}{{ end -}}
{{- if and .clientSecretRef (not $v.operator.enabled) (not $v.keyring.existingSecret) }}{{ fail (printf "integration %s has clientSecretRef, which only the operator reads: set operator.enabled=true or keyring.existingSecret" .name) }}{{ end -}}
{{- end -}}
{{- if not (or $v.operator.enabled $v.keyring.existingSecret $v.integrations $v.envFromSecrets) }}{{ fail "nobody could send: set integrations, keyring.existingSecret or envFromSecrets" }}{{ end -}}
{{- end -}}
