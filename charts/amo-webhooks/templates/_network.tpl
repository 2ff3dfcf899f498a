{{/* Parts of NetworkPolicies. */}}

{{/* The head of a component's policy, which closes all that is not opened below it; takes (list root component). */}}
{{- define "amo.policy" -}}
{{- $root := index . 0 -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "amo.fullname" $root }}-{{ index . 1 }}
  labels:
    {{- include "amo.labels" . | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "amo.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}

{{/* Pods of one component of this release; takes (list root component). */}}
{{- define "amo.peer" -}}
- podSelector:
    matchLabels:
      {{- include "amo.selector" . | nindent 6 }}
{{- end -}}

{{- define "amo.toDns" -}}
- ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{- define "amo.toApiServer" -}}
- ports:
    {{- range .Values.networkPolicy.apiServer.ports }}
    - port: {{ . }}
    {{- end }}
  {{- with .Values.networkPolicy.apiServer.peers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "amo.toCollector" -}}
{{- with .Values.otel.endpoint -}}
{{- $url := urlParse . -}}
- ports:
    - port: {{ regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary 443 80 (eq $url.scheme "https")) }}
  {{- with $.Values.networkPolicy.collector.peers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Postgres itself: ours, or where it is said to be. */}}
{{- define "amo.toDatabase" -}}
{{- if .Values.database.existingSecret -}}
- ports:
    - port: {{ .Values.networkPolicy.database.port }}
  {{- with .Values.networkPolicy.database.peers }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else -}}
- ports:
    - port: 5432
  to:
    {{- include "amo.peer" (list . "postgres") | nindent 4 }}
{{- end }}
{{- end -}}

{{/* What service and worker may reach. */}}
{{- define "amo.serviceEgress" -}}
{{ include "amo.toDns" . }}
{{- if .Values.pgbouncer.enabled }}
- ports:
    - port: 6432
  to:
    {{- include "amo.peer" (list . "pgbouncer") | nindent 4 }}
{{- else }}
{{ include "amo.toDatabase" . }}
{{- end }}
{{- with include "amo.toCollector" . }}
{{ . }}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Who may read metrics on a port; takes (list root port). */}}
{{- define "amo.fromMonitoring" -}}
{{- with (index . 0).Values.networkPolicy.monitoring -}}
- ports:
    - port: {{ index $ 1 }}
  from:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}
